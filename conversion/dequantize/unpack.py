"""Packed rows to values, inside a jitted program: plain elementwise operations, nothing placed, nothing called on the host."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from conversion.dequantize import small_blocks, super_blocks
from conversion.dequantize.fields import split_blocks
from conversion.ggml_types import GGMLType

_BLOCKS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "Q4_0": small_blocks.q4_0,
    "Q4_1": small_blocks.q4_1,
    "Q5_0": small_blocks.q5_0,
    "Q5_1": small_blocks.q5_1,
    "Q8_0": small_blocks.q8_0,
    "IQ4_NL": small_blocks.iq4_nl,
    "MXFP4": small_blocks.mxfp4,
    "Q2_K": super_blocks.q2_k,
    "Q3_K": super_blocks.q3_k,
    "Q4_K": super_blocks.q4_k,
    "Q5_K": super_blocks.q5_k,
    "Q6_K": super_blocks.q6_k,
    "IQ4_XS": super_blocks.iq4_xs,
}
_PLAIN = frozenset({"F32", "F16", "BF16", "I8", "I16", "I32"})

UNPACKABLE = frozenset(_BLOCKS) | _PLAIN
"""Names of the types that `unpack` knows."""


def unpack(raw: jax.Array, kind: GGMLType, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The values of packed rows: uint8 [..., row_bytes] -> dtype [..., columns].

    They are computed in float32, with the bits of `gguf.quants.dequantize`, and rounded to `dtype` once. Pure and traceable.

    Raises:
      ValueError: the type is not in `UNPACKABLE`, the bytes are not uint8, or a row is no whole number of blocks.
    """
    if kind.name not in UNPACKABLE:
        raise ValueError(
            f"{kind.name} is not unpacked on the device; dequantize() reads it. Known here: {sorted(UNPACKABLE)}"
        )
    if raw.dtype != jnp.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.block_bytes:
        raise ValueError(
            f"packed rows of {kind.name} must be uint8 [..., n * {kind.block_bytes}], not {raw.dtype} {list(raw.shape)}"
        )
    blocks = split_blocks(raw, kind.block_bytes)
    if kind.dtype is None:
        values = _BLOCKS[kind.name](blocks)
    else:
        values = jax.lax.bitcast_convert_type(blocks[..., 0] if kind.dtype.itemsize == 1 else blocks, kind.dtype)
    columns = raw.shape[-1] // kind.block_bytes * kind.block_size
    return values.astype(dtype).reshape(*raw.shape[:-1], columns)
