"""Types whose blocks hold 32 values, rounded as llama.cpp's reference rounds them, to the bit.

Each function takes float32 [blocks, 32] and returns the packed blocks, uint8 [blocks, block_bytes], and the scales
before their conversion to float16, for the caller to check that they fit. Source: the quantize_row_*_ref functions of
ggml-quants.c in llama.cpp; the arithmetic must keep its order, since values between two codes are common in bfloat16
weights.

A product followed by an addition may be fused by the compiler and then rounds once instead of twice. The clamp between
them, which no value reaches, prevents that. A constant divisor may become a factor, which rounds differently: it is
hidden behind a barrier. Blocks whose scale is subnormal in float32, and so zero in float16, may differ in their codes,
which then have no effect.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from conversion.quantize.fields import as_row, half_bytes, join_fields, magnitude, reciprocal

Packed = tuple[jax.Array, jax.Array]


def _divided(x: jax.Array, divisor: int) -> jax.Array:
    """x / divisor, rounded once, for x >= 0."""
    return x / (divisor + jnp.minimum(jnp.abs(x), 0))


def _largest(x: jax.Array) -> jax.Array:
    """The value of the largest magnitude with its sign, the first where there are several: [blocks, n] -> [blocks]."""
    most = magnitude(x)
    # The position and, as its lowest bit, the sign.
    place = 2 * lax.broadcasted_iota(jnp.int32, x.shape, 1) + (x < 0)
    first = jnp.where(jnp.abs(x) == most[:, None], place, 2 * x.shape[1]).min(1)
    return jnp.where(first & 1, -most, most)


def _codes_around_zero(x: jax.Array, zero: int) -> Packed:
    """Codes 0..2 * zero - 1, of which `zero` means zero, and the scale: the largest value gets code 0."""
    scale = _largest(x) / -zero
    product = jnp.minimum(x * reciprocal(scale)[:, None], 2 * zero)
    return jnp.minimum((product + (zero + 0.5)).astype(jnp.int32), 2 * zero - 1).astype(jnp.uint8), scale


def _codes_from_least(x: jax.Array, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Codes 0..most, the scale and the least value, which has code 0."""
    least = x.min(1)
    scale = _divided(x.max(1) - least, most)
    product = jnp.minimum((x - least[:, None]) * reciprocal(scale)[:, None], 2 * most)
    return jnp.minimum((product + 0.5).astype(jnp.int32), most).astype(jnp.uint8), scale, least


def _nibbles(codes: jax.Array) -> jax.Array:
    return join_fields((codes & 15).reshape(-1, 2, 16), 4)


def _fifth_bits(codes: jax.Array) -> jax.Array:
    bits = (codes >> 4).reshape(-1, 4, 8).swapaxes(1, 2)
    return join_fields(bits, 1)


def q4_0(x: jax.Array) -> Packed:
    codes, scale = _codes_around_zero(x, 8)
    return as_row(half_bytes(scale), _nibbles(codes)), scale


def q5_0(x: jax.Array) -> Packed:
    codes, scale = _codes_around_zero(x, 16)
    return as_row(half_bytes(scale), _fifth_bits(codes), _nibbles(codes)), scale


def q4_1(x: jax.Array) -> Packed:
    codes, scale, least = _codes_from_least(x, 15)
    return as_row(half_bytes(scale), half_bytes(least), _nibbles(codes)), jnp.stack([scale, least], -1)


def q5_1(x: jax.Array) -> Packed:
    codes, scale, least = _codes_from_least(x, 31)
    packed = as_row(half_bytes(scale), half_bytes(least), _fifth_bits(codes), _nibbles(codes))
    return packed, jnp.stack([scale, least], -1)


def q8_0(x: jax.Array) -> Packed:
    scale = _divided(magnitude(x), 127)
    product = jnp.minimum(x * reciprocal(scale)[:, None], 128)
    codes = lax.round(product, lax.RoundingMethod.AWAY_FROM_ZERO).astype(jnp.int8)
    return as_row(half_bytes(scale), lax.bitcast_convert_type(codes, jnp.uint8)), scale
