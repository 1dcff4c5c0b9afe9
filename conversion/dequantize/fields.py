"""The fields that blocks of every type are made of: float16 scales, codes of a few bits, tables of values."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def split_blocks(raw: jax.Array, block_bytes: int) -> jax.Array:
    """[..., row_bytes] -> [..., blocks, block_bytes]"""
    return raw.reshape(*raw.shape[:-1], -1, block_bytes)


def half(block: jax.Array, offset: int) -> jax.Array:
    """The little-endian float16 at a byte offset of each block, exactly, as float32: [..., block_bytes] -> [...]."""
    low, high = (block[..., offset + i].astype(jnp.uint16) for i in (0, 1))
    return jax.lax.bitcast_convert_type(low | (high << 8), jnp.float16).astype(jnp.float32)


def bit_fields(codes: jax.Array, width: int) -> jax.Array:
    """All fields of `width` bits of each byte, the lowest first, on a new axis before the last: [..., n] -> [..., 8 / width, n]."""
    shifts = jnp.arange(0, 8, width, dtype=jnp.uint8)[:, None]
    return (codes[..., None, :] >> shifts) & jnp.uint8((1 << width) - 1)


def lookup(codes: jax.Array, table: Sequence[int]) -> jax.Array:
    """The int8 values that 4-bit codes stand for: a tree of selections, which vectorises where a gather would not."""
    level = [jnp.int8(value) for value in table]
    for bit in range(4):
        is_set = (codes & jnp.uint8(1 << bit)) != 0
        level = [jnp.where(is_set, odd, even) for even, odd in zip(level[::2], level[1::2], strict=True)]
    return level[0]
