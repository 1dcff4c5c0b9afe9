"""Packed tensors of a file to float arrays on a device."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from conversion.dequantize.unpack import unpack
from conversion.weights.ggml_types import GGMLType
from conversion.weights.tensor_source import Array, aligned_empty

if TYPE_CHECKING:
    # jax.Device is this class, under a name that type checkers treat as a variable.
    from jaxlib._jax import Device

_PIECE = 1 << 20
"""Values per piece where a CPU unpacks a tensor in pieces: they stay in the cache until they are copied."""
_THREADS = min(4, os.cpu_count() or 1)
"""Threads that unpack pieces: a single one does not saturate the memory's write bandwidth."""


def dequantize(
    raw: Array, kind: GGMLType, *, dtype: DTypeLike = jnp.float32, device: Device | None = None
) -> jax.Array:
    """The values of a tensor: uint8 [..., row_bytes] on the host -> dtype [..., columns] on the device.

    The values are those of `gguf.quants.dequantize`, bit for bit in float32, rounded once to `dtype`. The packed bytes
    go to the device and are unpacked there; only F64 and I64, which JAX supports in 64-bit mode only, are converted to
    float32 on the host first.

    On a CPU, `raw` must not change until the result is ready. A tensor of type NVFP4 comes with a second one,
    `<name>.scale`, by which the caller multiplies.

    Raises:
      ValueError: the bytes are not uint8, or a row is not a whole number of blocks.
    """
    shape = _shape(raw, kind)
    target = next(iter(jnp.empty(()).devices())) if device is None else device
    if target.platform == "cpu" and int(np.prod(shape)) > _PIECE:
        # In memory from NumPy, which asks for huge pages. XLA's allocations come in pages of 4 KiB, and for a large
        # array the system takes longer to provide these than unpacking takes.
        values = aligned_empty(shape, jnp.dtype(dtype))
        dequantize_into(raw, kind, values)
        return jax.device_put(values, device)
    return _unpack(jax.device_put(_units(raw, kind), device), kind, jnp.dtype(dtype), shape)


def dequantize_into(raw: Array, kind: GGMLType, out: Array) -> None:
    """The values of a tensor into memory on the host: uint8 [..., row_bytes] -> `out` [..., columns], of any type of
    numbers.

    They are those of `dequantize`, unpacked by the CPU on up to four threads.

    Raises:
      ValueError: the bytes are not uint8, a row is not a whole number of blocks, or `out` has another shape than the
        values or is not C-contiguous.
    """
    shape = _shape(raw, kind)
    if out.shape != shape or not out.flags.c_contiguous:
        raise ValueError(
            f"`out` must be C-contiguous with the shape of the values, {list(shape)}; its shape is {list(out.shape)}"
        )
    units = _units(raw, kind)
    places = out.reshape(-1, *([kind.block_size] if kind.dtype is None else []))
    step = _PIECE // kind.block_size
    dtype = out.dtype if out.dtype.itemsize < 8 else np.dtype(np.float32)
    cpu = jax.local_devices(backend="cpu")[0]

    workers = min(_THREADS, -(-len(units) // step))

    def fill(first: int) -> None:
        piece = None
        for start in range(first * step, len(units), workers * step):
            part, place = jax.device_put(units[start : start + step], cpu), places[start : start + step]
            if piece is None or piece.shape != place.shape:
                piece = _unpack(part, kind, dtype, place.shape)
            else:
                piece = _unpack_over(piece, part, kind, dtype)
            place[...] = piece

    if workers > 1:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill, range(workers)))
    else:
        fill(0)


@partial(jax.jit, static_argnums=(1, 2, 3))
def _unpack(units: jax.Array, kind: GGMLType, dtype: np.dtype[Any], shape: tuple[int, ...]) -> jax.Array:
    return (unpack(units, kind, dtype) if kind.dtype is None else units.astype(dtype)).reshape(shape)


@partial(jax.jit, static_argnums=(2, 3), donate_argnums=0, keep_unused=True)
def _unpack_over(values: jax.Array, units: jax.Array, kind: GGMLType, dtype: np.dtype[Any]) -> jax.Array:
    """As `_unpack`, into the memory of values that are no longer needed: nothing is allocated."""
    return _unpack(units, kind, dtype, values.shape)


def _shape(raw: Array, kind: GGMLType) -> tuple[int, ...]:
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.block_bytes:
        raise ValueError(
            f"packed rows of {kind.name} must be uint8 [..., n * {kind.block_bytes}], not {raw.dtype} {list(raw.shape)}"
        )
    return (*raw.shape[:-1], raw.shape[-1] // kind.block_bytes * kind.block_size)


def _units(raw: Array, kind: GGMLType) -> Array:
    """Blocks, uint8 [n, block_bytes], or plain values [n] of a type that JAX has."""
    if kind.dtype is None:
        return raw.reshape(-1, kind.block_bytes)
    values = np.ascontiguousarray(raw).view(kind.dtype).reshape(-1)
    if values.dtype.itemsize < 8:
        return values
    # Numbers out of range become infinite, without a warning.
    with np.errstate(over="ignore"):
        return values.astype(np.float32)
