"""Whole tensors to packed rows, piece by piece: one compiled program serves every shape, and memory stays bounded."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from conversion.quantize.pack import pack
from conversion.weights.fallback import fallback
from conversion.weights.ggml_types import GGMLType
from conversion.weights.tensor_source import aligned_empty

if TYPE_CHECKING:
    # jax.Device is this class, under a name that type checkers treat as a variable.
    from jaxlib._jax import Device

Array = np.ndarray[Any, np.dtype[Any]]

_ACCEPTED = frozenset(np.dtype(dtype) for dtype in (np.float32, ml_dtypes.bfloat16, np.float16))
_PIECE = 1 << 18
"""Values that a CPU works on at a time: few enough for its caches."""
_DEVICE_PIECE = 1 << 24
"""Values that other devices work on at a time."""
_WIDTH = 256
"""Pieces on a CPU are rows of this many values, a whole number of blocks of any type."""


def quantize(values: Array | jax.Array, kind: GGMLType, *, device: Device | None = None) -> jax.Array:
    """A tensor in the blocks of `kind`: [..., columns] -> uint8 [..., row_bytes], the bytes that a GGUF file has for
    it.

    Pieces of a fixed size go through one program for each type, so that new shapes compile nothing expensive. On a CPU
    each core has a thread with its own piece, and memory beyond values and result stays within a few MiB per thread.
    Other devices hold values, result and the memory for one piece of 2^24 values.

    Plain types (F32, F16, BF16) keep infinities and NaN as they are. Blocks have no code for them, and a float16 scale
    has no value beyond 65504: such a tensor is certainly broken, so both are refused instead of clamped.

    Args:
      values: float32, bfloat16 or float16, on the host or on one device.
      kind: one of `QUANTIZABLE`.
      device: where the result goes; default: where `values` are, or JAX's default device.

    Raises:
      ValueError: a row is not a whole number of blocks (see `fallback`); the type is not in `QUANTIZABLE`; a value is
        not finite, or too large for the type. The message has its index.
      TypeError: the values are not of one of the three types.
    """
    if values.dtype not in _ACCEPTED or values.ndim == 0:
        raise TypeError(
            "values to quantise must be float32, bfloat16 or float16 [..., columns], "
            f"not {values.dtype} {list(values.shape)}"
        )
    columns = values.shape[-1]
    if columns % kind.block_size:
        raise ValueError(
            f"rows of {columns} values are no whole number of {kind.name} blocks of {kind.block_size}: "
            f"{fallback(kind, columns).name} takes them, and is what llama.cpp would use"
        )
    target = _place_of(values) if device is None else device
    if target.platform == "cpu":
        packed, sound = _on_cpu(np.asarray(values).reshape(-1), kind, target)
    else:
        packed, sound = _on_device(jax.device_put(values, target).reshape(-1), kind)
    if not sound:
        raise ValueError(_complaint(np.asarray(values), kind))
    return packed.reshape(*values.shape[:-1], kind.row_bytes(columns))


def _place_of(values: Array | jax.Array) -> Device:
    (device,) = (values if isinstance(values, jax.Array) else jnp.zeros(0)).devices()
    return device


def _on_cpu(values: Array, kind: GGMLType, device: Device) -> tuple[jax.Array, bool]:
    """[n] -> uint8 [bytes], and whether all values could be quantised."""
    packed = aligned_empty((kind.row_bytes(values.size),), np.dtype(np.uint8))

    def work(start: int) -> bool:
        piece = values[start : start + _PIECE]
        count = kind.row_bytes(piece.size)
        if piece.size < _PIECE:
            piece = np.concatenate([piece, np.zeros(_PIECE - piece.size, piece.dtype)])
        blocks, sound = _pack(jax.device_put(piece.reshape(-1, _WIDTH), device), kind)
        first = kind.row_bytes(start)
        packed[first : first + count] = np.asarray(blocks).reshape(-1)[:count]
        return bool(sound)

    # The first piece alone, so that the threads find the program compiled.
    starts = range(0, values.size, _PIECE)
    good = [work(start) for start in starts[:1]]
    if len(starts) > 1:
        with ThreadPoolExecutor(min(len(starts), os.cpu_count() or 1)) as pool:
            good += pool.map(work, starts[1:])
    return jax.device_put(packed, device), all(good)


def _on_device(values: jax.Array, kind: GGMLType) -> tuple[jax.Array, bool]:
    """The same, with values that are on the device: [n] -> uint8 [bytes]."""
    if kind.dtype is not None:
        packed, sound = _pack(values, kind)
        return packed, bool(sound)
    blocks = values.reshape(-1, kind.block_size)
    count = len(blocks)
    # Tensors of less than a piece are of few sizes when rounded up to powers of two.
    least, most = _PIECE // kind.block_size, _DEVICE_PIECE // kind.block_size
    piece = min(max(1 << (count - 1).bit_length(), least), most) if count else least
    blocks = jnp.pad(blocks, ((0, max(0, piece - count)), (0, 0)))
    packed = jnp.zeros((len(blocks), kind.block_bytes), jnp.uint8, device=blocks.device)
    good: list[jax.Array] = []
    for start in range(0, count, piece):
        # The last piece ends where the values end: some blocks are computed twice, with the same result.
        start = min(start, len(blocks) - piece)
        made, sound = _pack(_cut(blocks, start, piece), kind)
        packed = _place(packed, made, start)
        good.append(sound)
    return packed[:count].reshape(-1), all(bool(sound) for sound in good)


_pack: Callable[[jax.Array, GGMLType], tuple[jax.Array, jax.Array]] = jax.jit(pack, static_argnums=1)


@partial(jax.jit, static_argnums=2)
def _cut(blocks: jax.Array, start: jax.Array | int, size: int) -> jax.Array:
    return jax.lax.dynamic_slice_in_dim(blocks, start, size)


@partial(jax.jit, donate_argnums=0)
def _place(packed: jax.Array, made: jax.Array, start: jax.Array | int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(packed, made, start, 0)


def _complaint(values: Array, kind: GGMLType) -> str:
    """Why values could not be quantised, and where."""
    flat = values.reshape(-1)
    largest, place = 0.0, 0
    for start in range(0, flat.size, _PIECE):
        piece = flat[start : start + _PIECE].astype(np.float32)
        wrong = ~np.isfinite(piece) if kind.dtype is None else np.zeros(piece.size, np.bool_)
        if wrong.any():
            at = int(wrong.argmax())
            return (
                f"{piece[at]} at {_index(start + at, values.shape)} has no code in {kind.name}: "
                "the tensor is broken, or holds no weights; F32, F16 and BF16 would keep it as it is"
            )
        finite = np.where(np.isfinite(piece), np.abs(piece), 0)
        if finite.max() > largest:
            largest, place = float(finite.max()), start + int(finite.argmax())
    what = kind.name if kind.dtype is not None else f"the float16 scale of {kind.name}"
    where = _index(place, values.shape)
    return f"a magnitude of {largest:g} at {where} overflows {what}: keep this tensor in BF16 or F32"


def _index(flat: int, shape: tuple[int, ...]) -> list[int]:
    index: list[int] = []
    for size in reversed(shape):
        flat, position = divmod(flat, size)
        index.insert(0, position)
    return index
