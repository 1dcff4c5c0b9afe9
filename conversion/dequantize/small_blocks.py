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


def five_bits(block: jax.Array, offset: int) -> jax.Array:
    """Codes whose fifth bits are a word at `offset`, and whose low four are the nibbles after it: uint32 [..., blocks,
    32]."""
    word = jax.lax.bitcast_convert_type(block[..., offset : offset + 4], jnp.uint32)[..., None]
    fifth = (word >> jnp.arange(RUN, dtype=jnp.uint32)) & 1
    return nibbles(block[..., offset + 4 :]).astype(jnp.uint32) | (fifth << 4)


def q4_0(block: jax.Array) -> jax.Array:
    return half(block, 0) * centred(nibbles(block[..., 2:]), 8)


def q4_1(block: jax.Array) -> jax.Array:
    return half(block, 0) * centred(nibbles(block[..., 4:]), 0) + half(block, 2)


def q5_0(block: jax.Array) -> jax.Array:
    return half(block, 0) * centred(five_bits(block, 2), 16)


def q5_1(block: jax.Array) -> jax.Array:
    return half(block, 0) * centred(five_bits(block, 4), 0) + half(block, 2)


def q8_0(block: jax.Array) -> jax.Array:
    return half(block, 0) * signed(block[..., 2:])


def iq4_nl(block: jax.Array) -> jax.Array:
    return half(block, 0) * lookup(nibbles(block[..., 2:]), IQ4_VALUES)
