"""Types whose blocks hold 32 values: one scale, perhaps an offset, and the codes.

Each function takes blocks as uint8 [..., blocks, block_bytes] and returns float32 [..., blocks, 32].
Source: the block structs of ggml-common.h and the dequantize_row functions of ggml-quants.c in llama.cpp.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from conversion.dequantize.fields import RUN, centred, half, lookup, nibbles, signed

IQ4_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of IQ4_NL and IQ4_XS stand for."""


def _five_bits(block: jax.Array, offset: int) -> jax.Array:
    """Codes whose fifth bits are a word at `offset`, and whose low four are the nibbles after it: uint32 [..., blocks, 32]."""
    word = jax.lax.bitcast_convert_type(block[..., offset : offset + 4], jnp.uint32)[..., None]
    fifth = (word >> jnp.arange(RUN, dtype=jnp.uint32)) & 1
    return nibbles(block[..., offset + 4 :]).astype(jnp.uint32) | (fifth << 4)


def q4_0(block: jax.Array) -> jax.Array:
    return half(block, 0) * centred(nibbles(block[..., 2:]), 8)


def q4_1(block: jax.Array) -> jax.Array:
    return half(block, 0) * centred(nibbles(block[..., 4:]), 0) + half(block, 2)


def q5_0(block: jax.Array) -> jax.Array:
    return half(block, 0) * centred(_five_bits(block, 2), 16)


def q5_1(block: jax.Array) -> jax.Array:
    return half(block, 0) * centred(_five_bits(block, 4), 0) + half(block, 2)


def q8_0(block: jax.Array) -> jax.Array:
    return half(block, 0) * signed(block[..., 2:])


def iq4_nl(block: jax.Array) -> jax.Array:
    return half(block, 0) * lookup(nibbles(block[..., 2:]), IQ4_VALUES)


def mxfp4(block: jax.Array) -> jax.Array:
    """Codes E2M1 under a power of two, 2^(e - 127), of the OCP microscaling formats.

    For the two least scales some results are subnormal, which float arithmetic may flush to zero: their bits are put together as
    integers. Twice the magnitude of a code is a hexadecimal digit of `digits`; for the two least scales the digit is the result's
    bits in units of 2^21.
    """
    exponent = block[..., :1].astype(jnp.uint32)
    codes = nibbles(block[..., 1:]).astype(jnp.uint32)
    least = exponent < 2
    digits = jnp.where(exponent == 0, jnp.uint32(0xA8643210), jnp.uint32(0xECA86420))
    digits = jnp.where(least, digits, jnp.uint32(0xC8643210))
    digit = (digits >> ((codes & 7) << 2)) & 15
    # 2^(e - 128), half the scale, because the digits are twice the magnitudes.
    scale = jax.lax.bitcast_convert_type(jnp.where(least, jnp.uint32(1), exponent - 1) << 23, jnp.float32)
    product = jax.lax.bitcast_convert_type(centred(digit, 0) * scale, jnp.uint32)
    # Code 8 is a positive zero to ggml, whose tables hold integers.
    sign = jnp.where(codes > 8, jnp.uint32(1 << 31), jnp.uint32(0))
    return jax.lax.bitcast_convert_type(jnp.where(least, digit << 21, product) | sign, jnp.float32)
