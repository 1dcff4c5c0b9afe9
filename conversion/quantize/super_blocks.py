"""Types whose blocks hold 256 values: packing the results of the search.

Each function takes float32 [blocks, 256] and returns the packed blocks, uint8 [blocks, block_bytes], and their float16
scales, for the caller to check that they are finite. Source of the layouts: the block structs of ggml-common.h in
llama.cpp.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from conversion.quantize.fields import as_row, half_bytes, join_fields
from conversion.quantize.search import offset_blocks, signed_blocks

Packed = tuple[jax.Array, jax.Array]


def q2_k(x: jax.Array) -> Packed:
    found = offset_blocks(x, run=16, most=3, top=15)
    units = jnp.stack([found.unit, found.offset_unit], -1)
    return as_row(found.scale | (found.offset << 4), _crumbs(found.code), half_bytes(units)), units


def q3_k(x: jax.Array) -> Packed:
    found = signed_blocks(x, run=16, nearest=partial(_whole, zero=4), least=-4, top=32)
    codes = lax.optimization_barrier((found.level + 4).astype(jnp.uint8))
    high = join_fields((codes >> 2).reshape(-1, 8, 32), 1)
    scale = (found.scale + jnp.int8(32)).astype(jnp.uint8)
    low_scales = join_fields((scale & 15).reshape(-1, 2, 8), 4)
    high_scales = join_fields((scale >> 4).reshape(-1, 4, 4), 2)
    return as_row(high, _crumbs(codes & 3), low_scales, high_scales, half_bytes(found.unit)), found.unit


def q4_k(x: jax.Array) -> Packed:
    found = offset_blocks(x, run=32, most=15, top=63)
    units = jnp.stack([found.unit, found.offset_unit], -1)
    return as_row(half_bytes(units), _six_bit_pairs(found.scale, found.offset), _nibbles(found.code)), units


def q5_k(x: jax.Array) -> Packed:
    found = offset_blocks(x, run=32, most=31, top=63)
    units = jnp.stack([found.unit, found.offset_unit], -1)
    scales = _six_bit_pairs(found.scale, found.offset)
    return as_row(half_bytes(units), scales, join_fields(found.code >> 4, 1), _nibbles(found.code & 15)), units


def q6_k(x: jax.Array) -> Packed:
    found = signed_blocks(x, run=16, nearest=partial(_whole, zero=32), least=-32, top=128)
    codes = lax.optimization_barrier((found.level + 32).astype(jnp.uint8))
    low = join_fields((codes & 15).reshape(-1, 2, 2, 64), 4)
    high = join_fields((codes >> 4).reshape(-1, 2, 4, 32), 2)
    return as_row(low, high, lax.bitcast_convert_type(found.scale, jnp.uint8), half_bytes(found.unit)), found.unit


def _whole(x: jax.Array, *, zero: int) -> jax.Array:
    """The levels of codes 0..2 * zero - 1."""
    return jnp.clip(jnp.round(x), -zero, zero - 1)


def _crumbs(codes: jax.Array) -> jax.Array:
    """Two bits of each code: byte i of a half holds values i, i + 32, i + 64 and i + 96 of it."""
    return join_fields(codes.reshape(-1, 2, 4, 32), 2)


def _nibbles(codes: jax.Array) -> jax.Array:
    """Four bits of each code: byte i of a quarter holds values i and i + 32 of it."""
    return join_fields(codes.reshape(-1, 4, 2, 32), 4)


def _six_bit_pairs(scale: jax.Array, offset: jax.Array) -> jax.Array:
    """Eight scales and eight offsets of six bits in twelve bytes: uint8 [blocks, 8] each -> [blocks, 12].

    Four bytes for scales 0..3 and four for offsets 0..3, with the upper two bits of scales and offsets 4..7 as their
    own upper bits; then four bytes with the lower four bits of scales and offsets 4..7.
    """
    first, last = scale[:, :4] | (scale[:, 4:] >> 4 << 6), (scale[:, 4:] & 15) | (offset[:, 4:] << 4)
    return jnp.concatenate([first, offset[:, :4] | (offset[:, 4:] >> 4 << 6), last], -1)
