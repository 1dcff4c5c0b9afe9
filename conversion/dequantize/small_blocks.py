"""Types whose blocks hold 32 values: one scale, perhaps an offset, and the codes.

Each function takes blocks as uint8 [..., blocks, block_bytes] and returns float32 [..., blocks, 32], possibly with the last axis
split. Source: the block structs of ggml-common.h and the dequantize_row functions of ggml-quants.c in llama.cpp.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from conversion.dequantize.fields import bit_fields, half, lookup

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of IQ4_NL and IQ4_XS stand for."""


def _signed(codes: jax.Array, zero: int) -> jax.Array:
    return (codes.astype(jnp.int8) - jnp.int8(zero)).astype(jnp.float32)


def _fifth_bits(block: jax.Array, offset: int) -> jax.Array:
    """Bits 0..31 of the four bytes at `offset`, as 0 or 16, in the order of `bit_fields(.., 4)`: [..., blocks, 2, 16]."""
    words = block[..., offset : offset + 4].reshape(*block.shape[:-1], 2, 2, 1)
    bits = (words >> jnp.arange(8, dtype=jnp.uint8)) & jnp.uint8(1)
    return bits.reshape(*block.shape[:-1], 2, 16) << 4


def q4_0(block: jax.Array) -> jax.Array:
    return half(block, 0)[..., None, None] * _signed(bit_fields(block[..., 2:], 4), 8)


def q4_1(block: jax.Array) -> jax.Array:
    codes = bit_fields(block[..., 4:], 4).astype(jnp.float32)
    return half(block, 0)[..., None, None] * codes + half(block, 2)[..., None, None]


def q5_0(block: jax.Array) -> jax.Array:
    codes = bit_fields(block[..., 6:], 4) | _fifth_bits(block, 2)
    return half(block, 0)[..., None, None] * _signed(codes, 16)


def q5_1(block: jax.Array) -> jax.Array:
    codes = bit_fields(block[..., 8:], 4) | _fifth_bits(block, 4)
    return half(block, 0)[..., None, None] * codes.astype(jnp.float32) + half(block, 2)[..., None, None]


def q8_0(block: jax.Array) -> jax.Array:
    return half(block, 0)[..., None] * jax.lax.bitcast_convert_type(block[..., 2:], jnp.int8).astype(jnp.float32)


def iq4_nl(block: jax.Array) -> jax.Array:
    codes = bit_fields(block[..., 2:], 4)
    return half(block, 0)[..., None, None] * lookup(codes, IQ4_VALUES).astype(jnp.float32)


def mxfp4(block: jax.Array) -> jax.Array:
    """Codes E2M1 under a power of two, 2^(e - 127) of the OCP microscaling formats.

    For the two least scales some results are subnormal, which float arithmetic may flush to zero: their bits are put together
    as integers. Twice the magnitude of a code is a hexadecimal digit of `digits`; for the two least scales the digit is the
    result's leading bits, in units of 2^21 units in the last place.
    """
    exponent = block[..., :1, None].astype(jnp.uint32)
    codes = bit_fields(block[..., 1:], 4).astype(jnp.uint32)
    tiny = exponent < 2
    digits = jnp.where(
        tiny, jnp.where(exponent == 0, jnp.uint32(0xA8643210), jnp.uint32(0xECA86420)), jnp.uint32(0xC8643210)
    )
    digit = (digits >> ((codes & 7) << 2)) & 15
    # 2^(e - 128), half the scale, because the digits are twice the magnitudes.
    scale = jax.lax.bitcast_convert_type(jnp.where(tiny, jnp.uint32(1), exponent - 1) << 23, jnp.float32)
    product = jax.lax.bitcast_convert_type(digit.astype(jnp.float32) * scale, jnp.uint32)
    sign = jnp.where(codes > 8, jnp.uint32(1 << 31), jnp.uint32(0))
    return jax.lax.bitcast_convert_type(jnp.where(tiny, digit << 21, product) | sign, jnp.float32)
