"""Packed tensors of a file to float arrays on a device."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from conversion.dequantize.unpack import UNPACKABLE, unpack
from conversion.ggml_types import GGMLType

if TYPE_CHECKING:
    # jax.Device is this class, under a name that type checkers take for a variable.
    from jaxlib._jax import Device

Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

_PIECE = 1 << 21
"""Values that the host unpacks at a time."""
_GROUP = 16
"""Blocks in a row for `gguf.quants`, which works on 16 rows at a time: its intermediates stay in the cache."""


def dequantize(
    raw: Bytes, kind: GGMLType, *, dtype: DTypeLike = jnp.float32, device: Device | None = None
) -> jax.Array:
    """The values of a tensor: uint8 [..., row_bytes] on the host -> dtype [..., columns] on the device.

    The values are those of `gguf.quants.dequantize`, bit for bit in float32, rounded once to `dtype`. The packed bytes go to the
    device and are unpacked there, for the types in `UNPACKABLE`. The others are unpacked on the host, in pieces of 2 million
    values, each of which goes to its place on the device before the next is made: the host never holds the tensor.

    On a CPU, bytes on a 64-byte border are used where they lie: they must not change until the result is ready.
    The tensors of type NVFP4 come with a second one, `<name>.scale`, by which the caller multiplies.

    Raises:
      ValueError: the bytes are not uint8, or a row is no whole number of blocks.
    """
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.block_bytes:
        raise ValueError(
            f"packed rows of {kind.name} must be uint8 [..., n * {kind.block_bytes}], not {raw.dtype} {list(raw.shape)}"
        )
    if kind.name in UNPACKABLE:
        # A plain type goes over under its own type: the host relabels bytes for nothing.
        placed = raw if kind.dtype is None else np.ascontiguousarray(raw).view(kind.dtype)
        return _unpack(jax.device_put(placed, device), kind, jnp.dtype(dtype))
    blocks = raw.reshape(-1, kind.block_bytes)
    step = _PIECE // kind.block_size
    values = jnp.zeros((len(blocks), kind.block_size), dtype, device=device)
    for start in range(0, len(blocks), step):
        piece = jax.device_put(_on_host(blocks[start : start + step], kind), device)
        values = _place(values, piece, start)
    return values.reshape(*raw.shape[:-1], raw.shape[-1] // kind.block_bytes * kind.block_size)


@partial(jax.jit, static_argnums=(1, 2))
def _unpack(placed: jax.Array, kind: GGMLType, dtype: np.dtype[Any]) -> jax.Array:
    # A copy: the result would otherwise be the caller's own memory where the type stays as it is.
    return unpack(placed, kind, dtype) if kind.dtype is None else jnp.array(placed, dtype, copy=True)


@partial(jax.jit, donate_argnums=0)
def _place(values: jax.Array, piece: jax.Array, start: int) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(values, piece.astype(values.dtype), start, 0)


def _on_host(blocks: Bytes, kind: GGMLType) -> Floats:
    """uint8 [blocks, block_bytes] -> float32 [blocks, block_size]"""
    # Here, because the package takes longer to import than to be used.
    import gguf

    values = np.empty((len(blocks), kind.block_size), np.float32)
    whole = len(blocks) // _GROUP * _GROUP
    # Numbers out of range become infinite, and infinite scales make values that are no numbers: no affair of the console's.
    with np.errstate(over="ignore", invalid="ignore"):
        if kind.dtype is not None:
            # F64 and I64, which JAX has in 64-bit mode only.
            return np.ascontiguousarray(blocks).view(kind.dtype).astype(np.float32)
        for part, row in ((slice(whole), _GROUP), (slice(whole, None), 1)):
            rows = blocks[part].reshape(-1, row * kind.block_bytes)
            if len(rows):
                unpacked = gguf.dequantize(rows, gguf.GGMLQuantizationType(kind.id))
                values[part] = unpacked.reshape(-1, kind.block_size)
    return values
