"""Types whose blocks hold 256 values: a float16 scale for all, and small integer scales for sub-blocks of 16 or 32.

Each function takes blocks as uint8 [..., blocks, block_bytes] and returns float32 [..., blocks, 256], possibly with the last axis
split. Source: the block structs of ggml-common.h and the dequantize_row functions of ggml-quants.c in llama.cpp.

The scales of the sub-blocks are worked out before the values, behind an optimisation barrier: fused into the loop over the values,
XLA would unpack them anew for every value. All products are exact in float32 (at most 11 + 6 + 6 bits), so a fused
multiply-add, which XLA may choose, rounds as the separate operations do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from conversion.dequantize.fields import bit_fields, half, lookup
from conversion.dequantize.small_blocks import IQ4_VALUES


def _runs(codes: jax.Array, run: int) -> jax.Array:
    """[..., n] -> [..., n / run, run]"""
    return codes.reshape(*codes.shape[:-1], -1, run)


def _scale_min(block: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scale and minimum of the eight sub-blocks of Q4_K and Q5_K: [..., blocks, block_bytes] -> two of [..., blocks, 8, 1].

    Twelve bytes: six bits each of scales 0..3, of minima 0..3; then four low bits of scales 4..7 and of minima 4..7 together,
    whose two high bits are the spare bits of the first eight bytes.
    """
    first, second, third = (block[..., start : start + 4] for start in (4, 8, 12))
    scale = jnp.concatenate([first & 63, (third & 15) | ((first >> 2) & 48)], -1)
    minimum = jnp.concatenate([second & 63, (third >> 4) | ((second >> 2) & 48)], -1)
    scale = half(block, 0)[..., None] * scale.astype(jnp.float32)
    minimum = half(block, 2)[..., None] * minimum.astype(jnp.float32)
    scale, minimum = jax.lax.optimization_barrier((scale, minimum))
    return scale[..., None], minimum[..., None]


def q2_k(block: jax.Array) -> jax.Array:
    fields = block[..., :16]
    scale = half(block, 80)[..., None] * (fields & 15).astype(jnp.float32)
    minimum = half(block, 82)[..., None] * (fields >> 4).astype(jnp.float32)
    scale, minimum = jax.lax.optimization_barrier((scale, minimum))
    codes = bit_fields(_runs(block[..., 16:80], 32), 2).reshape(*block.shape[:-1], 16, 16)
    return scale[..., None] * codes.astype(jnp.float32) - minimum[..., None]


def q3_k(block: jax.Array) -> jax.Array:
    low = bit_fields(block[..., 96:104], 4).reshape(*block.shape[:-1], 16)
    high = bit_fields(block[..., 104:108], 2).reshape(*block.shape[:-1], 16)
    scale = ((low | (high << 4)).astype(jnp.int8) - jnp.int8(32)).astype(jnp.float32)
    scale = jax.lax.optimization_barrier(half(block, 108)[..., None] * scale)
    low = bit_fields(_runs(block[..., 32:96], 32), 2).reshape(*block.shape[:-1], 16, 16)
    high = bit_fields(block[..., :32], 1).reshape(*block.shape[:-1], 16, 16)
    # A clear high bit takes four away.
    codes = (low | (high << 2)).astype(jnp.int8) - jnp.int8(4)
    return scale[..., None] * codes.astype(jnp.float32)


def q4_k(block: jax.Array) -> jax.Array:
    scale, minimum = _scale_min(block)
    codes = bit_fields(_runs(block[..., 16:], 32), 4).reshape(*block.shape[:-1], 8, 32)
    return scale * codes.astype(jnp.float32) - minimum


def q5_k(block: jax.Array) -> jax.Array:
    scale, minimum = _scale_min(block)
    low = bit_fields(_runs(block[..., 48:], 32), 4).reshape(*block.shape[:-1], 8, 32)
    codes = low | (bit_fields(block[..., 16:48], 1) << 4)
    return scale * codes.astype(jnp.float32) - minimum


def q6_k(block: jax.Array) -> jax.Array:
    scale = jax.lax.bitcast_convert_type(block[..., 192:208], jnp.int8).astype(jnp.float32)
    scale = jax.lax.optimization_barrier(half(block, 208)[..., None] * scale)
    low = bit_fields(_runs(block[..., :128], 64), 4).reshape(*block.shape[:-1], 8, 32)
    high = bit_fields(_runs(block[..., 128:192], 32), 2).reshape(*block.shape[:-1], 8, 32)
    codes = (low | (high << 4)).astype(jnp.int8) - jnp.int8(32)
    return scale[..., None] * codes.reshape(*block.shape[:-1], 16, 16).astype(jnp.float32)


def iq4_xs(block: jax.Array) -> jax.Array:
    low = bit_fields(block[..., 4:8, None], 4).reshape(*block.shape[:-1], 8)
    high = bit_fields(block[..., 2:4, None], 2).reshape(*block.shape[:-1], 8)
    scale = ((low | (high << 4)).astype(jnp.int8) - jnp.int8(32)).astype(jnp.float32)
    scale = jax.lax.optimization_barrier(half(block, 0)[..., None] * scale)
    codes = bit_fields(_runs(block[..., 8:], 16), 4).reshape(*block.shape[:-1], 8, 32)
    return scale[..., None] * lookup(codes, IQ4_VALUES).astype(jnp.float32)
