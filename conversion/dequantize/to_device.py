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
from conversion.ggml_types import GGMLType
from conversion.tensor_source import Array, aligned_empty

if TYPE_CHECKING:
    # jax.Device is this class, under a name that type checkers take for a variable.
    from jaxlib._jax import Device

_PIECE = 1 << 20
"""Values at a time where a CPU unpacks a tensor in pieces: they stay in the cache until they are copied to their place."""
_THREADS = min(4, os.cpu_count() or 1)
"""That unpack pieces, each its own: one thread alone does not write as fast as memory takes it."""


def dequantize(
    raw: Array, kind: GGMLType, *, dtype: DTypeLike = jnp.float32, device: Device | None = None
) -> jax.Array:
    """The values of a tensor: uint8 [..., row_bytes] on the host -> dtype [..., columns] on the device.

    The values are those of `gguf.quants.dequantize`, bit for bit in float32, rounded once to `dtype`. The packed bytes go to the
    device and are unpacked there; only F64 and I64, which JAX has in 64-bit mode alone, become float32 on the host before.

    On a CPU, `raw` must not change until the result is ready.
    The tensors of type NVFP4 come with a second one, `<name>.scale`, by which the caller multiplies.

    Raises:
      ValueError: the bytes are not uint8, or a row is no whole number of blocks.
    """
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.block_bytes:
        raise ValueError(
            f"packed rows of {kind.name} must be uint8 [..., n * {kind.block_bytes}], not {raw.dtype} {list(raw.shape)}"
        )
    shape = (*raw.shape[:-1], raw.shape[-1] // kind.block_bytes * kind.block_size)
    if kind.dtype is not None:
        # The host relabels bytes for nothing.
        raw = np.ascontiguousarray(raw).view(kind.dtype)
    if kind.dtype is not None and kind.dtype.itemsize == 8:
        # Numbers out of range become infinite, without a word on the console.
        with np.errstate(over="ignore"):
            raw = raw.astype(np.float32)
    target = next(iter(jnp.empty(()).devices())) if device is None else device
    if target.platform == "cpu" and int(np.prod(shape)) > _PIECE:
        return jax.device_put(_unpack_in_pieces(raw, shape, kind, jnp.dtype(dtype), target), device)
    return _unpack(jax.device_put(raw, device), kind, jnp.dtype(dtype))


@partial(jax.jit, static_argnums=(1, 2))
def _unpack(placed: jax.Array, kind: GGMLType, dtype: np.dtype[Any]) -> jax.Array:
    return unpack(placed, kind, dtype) if kind.dtype is None else placed.astype(dtype)


def _unpack_in_pieces(raw: Array, shape: tuple[int, ...], kind: GGMLType, dtype: np.dtype[Any], cpu: Device) -> Array:
    """The values in memory of NumPy's, which asks for huge pages.

    What XLA allocates comes in pages of 4 KiB. For a large array the system takes longer to hand these out than unpacking takes.
    """
    # Blocks [n, block_bytes] to values [n, block_size], or plain values [n].
    units = raw.reshape(-1, kind.block_bytes) if kind.dtype is None else raw.reshape(-1)
    values = aligned_empty(shape, dtype)
    places = values.reshape(-1, kind.block_size) if kind.dtype is None else values.reshape(-1)
    step = _PIECE // kind.block_size

    def place(start: int) -> None:
        piece = slice(start, start + step)
        places[piece] = _unpack(jax.device_put(units[piece], cpu), kind, dtype)

    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(place, range(0, len(units), step)))
    return values
