"""Types whose codes are four-bit floats, E2M1, under scales that are eight-bit floats.

Each function takes blocks as uint8 [..., blocks, block_bytes] and returns float32 [..., blocks, values].
Source: the OCP microscaling formats (MX) 1.0; ggml-common.h and ggml-quants.c of llama.cpp.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from conversion.dequantize.fields import centred, fold, halves, nibbles

_TWICE_E2M1 = 0xC8643210
"""Its hexadecimal digits are twice the magnitudes of the codes."""


def _digit(digits: jax.Array, codes: jax.Array) -> jax.Array:
    return (digits >> ((codes & 7) << 2)) & 15


def _signed(bits: jax.Array, codes: jax.Array) -> jax.Array:
    """Magnitudes, given as the bits of float32, under the signs of their codes."""
    # Code 8 is a positive zero to ggml, whose tables hold integers.
    sign = jnp.where(codes > 8, jnp.uint32(1 << 31), jnp.uint32(0))
    return jax.lax.bitcast_convert_type(bits | sign, jnp.float32)


def mxfp4(block: jax.Array) -> jax.Array:
    """Scales are powers of two, 2^(e - 127).

    With the two smallest scales some values are subnormal, which float arithmetic may flush to zero: their bits are
    assembled as integers. The digits for these scales are the bits of the value in units of 2^21.
    """
    exponent = block[..., :1].astype(jnp.uint32)
    codes = nibbles(block[..., 1:]).astype(jnp.uint32)
    least = exponent < 2
    digits = jnp.where(exponent == 0, jnp.uint32(0xA8643210), jnp.uint32(0xECA86420))
    digit = _digit(jnp.where(least, digits, jnp.uint32(_TWICE_E2M1)), codes)
    # 2^(e - 128), half the scale, because the digits are twice the magnitudes.
    scale = jax.lax.bitcast_convert_type(jnp.where(least, jnp.uint32(1), exponent - 1) << 23, jnp.float32)
    product = jax.lax.bitcast_convert_type(centred(digit, 0) * scale, jnp.uint32)
    return _signed(jnp.where(least, digit << 21, product), codes)


def nvfp4(block: jax.Array) -> jax.Array:
    """Scales of the four sub-blocks of 16 are unsigned E4M3 floats. The scale of the whole tensor is a separate
    tensor."""
    code = block[..., :4].astype(jnp.uint32)
    exponent, mantissa = (code >> 3) & 15, code & 7
    power = jax.lax.bitcast_convert_type((jnp.maximum(exponent, 1) + (127 - 11)) << 23, jnp.float32)
    scale = centred(jnp.where(exponent > 0, mantissa + 8, mantissa), 0) * power
    scale = jnp.where(code == 0x7F, jnp.float32(0), scale)
    codes = nibbles(fold(block[..., 4:], 4, 8)).astype(jnp.uint32)
    codes = fold(codes.reshape(*block.shape[:-1], 64), 2, 32)
    magnitude = centred(_digit(jnp.uint32(_TWICE_E2M1), codes), 0) * halves(fold(scale, 2, 2))
    return _signed(jax.lax.bitcast_convert_type(magnitude, jnp.uint32), codes)
