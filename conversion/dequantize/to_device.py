"""Packed tensors of a file to float arrays on a device."""

from __future__ import annotations

from functools import partial
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
from gguf import quants
from jax.typing import DTypeLike

from conversion.dequantize.unpack import UNPACKABLE, unpack
from conversion.ggml_types import GGMLType

_PIECE = 1 << 22
"""Values that are unpacked on the host at a time."""


def dequantize(
    raw: np.ndarray[Any, np.dtype[np.uint8]],
    kind: GGMLType,
    *,
    dtype: DTypeLike = jnp.float32,
    device: jax.Device | None = None,
) -> jax.Array:
    """The values of a tensor: uint8 [..., row_bytes] on the host -> dtype [..., columns] on the device.

    The packed bytes go to the device and are unpacked there, for the types in `UNPACKABLE`; the others are unpacked on the host, in
    pieces, so that host memory beyond `raw` stays within 64 MiB. On a CPU, bytes on a 64-byte border are used where they lie:
    they must not change until the result is ready. NVFP4 tensors come with a second one, `<name>.scale`, whose factor the
    caller applies.

    Raises:
      ValueError: the bytes are not uint8, or a row is no whole number of blocks.
    """
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.block_bytes:
        raise ValueError(
            f"packed rows of {kind.name} must be uint8 [..., n * {kind.block_bytes}], not {raw.dtype} {list(raw.shape)}"
        )
    shape = (*raw.shape[:-1], raw.shape[-1] // kind.block_bytes * kind.block_size)
    if kind.name in UNPACKABLE:
        return _unpack(jax.device_put(raw, device), kind, jnp.dtype(dtype))
    blocks = raw.reshape(-1, kind.block_bytes)
    step = _PIECE // kind.block_size
    values = jnp.zeros((len(blocks), kind.block_size), dtype, device=device)
    for start in range(0, len(blocks), step):
        piece = jax.device_put(_on_host(blocks[start : start + step], kind), device)
        values = _place(values, piece, start)
    return values.reshape(shape)


@partial(jax.jit, static_argnums=(1, 2))
def _unpack(raw: jax.Array, kind: GGMLType, dtype: jnp.dtype[Any]) -> jax.Array:
    return unpack(raw, kind, dtype)


@partial(jax.jit, donate_argnums=0)
def _place(values: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(values, piece.astype(values.dtype), start, 0)


def _on_host(blocks: np.ndarray[Any, np.dtype[np.uint8]], kind: GGMLType) -> np.ndarray[Any, np.dtype[Any]]:
    """uint8 [blocks, block_bytes] -> [blocks, block_size] of a type that JAX has without 64-bit mode."""
    if kind.dtype is not None:
        plain = np.ascontiguousarray(blocks).view(kind.dtype)
        return plain.astype(np.float32)
    return quants.dequantize(blocks, gguf.GGMLQuantizationType(kind.id)).astype(np.float32, copy=False)
