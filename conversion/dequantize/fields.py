"""The fields that blocks of every type are made of: float16 scales, codes of a few bits, tables of values.

Everything here is elementwise arithmetic, in forms that XLA vectorises on a CPU as well. There the loop over the
innermost axis is vectorised only if it is too long to be unrolled (32 values with some work each) and if neighbouring
values come from neighbouring bytes: hence `side_by_side` and `centred` where a shorter axis and a plain conversion
would do, and tables in words instead of gathers. The plain forms are 2 to 20 times slower.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

RUN = 32
"""Values along the innermost axis of what the block functions return."""


def split_blocks(raw: jax.Array, block_bytes: int) -> jax.Array:
    """[..., row_bytes] -> [..., blocks, block_bytes]"""
    return raw.reshape(*raw.shape[:-1], raw.shape[-1] // block_bytes, block_bytes)


def fold(block: jax.Array, *shape: int) -> jax.Array:
    """The last axis split: [..., n] -> [..., *shape]"""
    return block.reshape(*block.shape[:-1], *shape)


def half(block: jax.Array, offset: int, extra_axes: int = 1) -> jax.Array:
    """The little-endian float16 at a byte offset of each block, as float32, exactly: [..., block_bytes] -> [..., 1,
    ...]"""
    low, high = (block[..., offset + i].astype(jnp.uint16) for i in (0, 1))
    value = jax.lax.bitcast_convert_type(low | (high << 8), jnp.float16).astype(jnp.float32)
    return value.reshape(*value.shape, *[1] * extra_axes)


def centred(codes: jax.Array, zero: int) -> jax.Array:
    """Unsigned codes below 2^23, minus `zero`, as exact float32.

    The code is set into the low bits of the float 2^23, and 2^23 + zero is subtracted.
    """
    shifted = jax.lax.bitcast_convert_type(codes.astype(jnp.uint32) | jnp.uint32(0x4B000000), jnp.float32)
    return shifted - jnp.float32(2**23 + zero)


def signed(codes: jax.Array) -> jax.Array:
    """Bytes that hold int8, as float32."""
    return centred(codes ^ jnp.uint8(128), 128)


def bits(codes: jax.Array, width: int, *axes: int) -> jax.Array:
    """The fields of `width` bits at the shifts 0, width, 2 width, ... along axes that the codes broadcast against.

    `axes` are the lengths of the last axes of the result, with 1 for axes over which the shift does not change.
    """
    count = int(np.prod(axes))
    shifts = jnp.arange(0, count * width, width, dtype=codes.dtype).reshape(axes)
    return (codes >> shifts) & jnp.asarray((1 << width) - 1, codes.dtype)


def side_by_side(left: jax.Array, right: jax.Array) -> jax.Array:
    """Two uint8 [..., n] -> [..., 2 n]"""
    around = [(0, 0)] * (left.ndim - 1)
    return jnp.pad(left, [*around, (0, right.shape[-1])]) | jnp.pad(right, [*around, (left.shape[-1], 0)])


def nibbles(codes: jax.Array) -> jax.Array:
    """The low halves of the bytes, then the high ones: uint8 [..., n] -> [..., 2 n]"""
    return side_by_side(codes & 15, codes >> 4)


def halves(scales: jax.Array) -> jax.Array:
    """Scales of the two sub-blocks of 16 in each run: [..., 2] -> [..., 32]"""
    return jnp.where(jnp.arange(RUN) < RUN // 2, scales[..., :1], scales[..., 1:])


def lookup(codes: jax.Array, table: Sequence[int]) -> jax.Array:
    """The int8 values that 4-bit codes stand for, as float32. The table is held in four words of four bytes."""
    words = [sum((value + 128) << 8 * i for i, value in enumerate(table[start : start + 4])) for start in (0, 4, 8, 12)]
    first, second, third, fourth = (jnp.uint32(word) for word in words)
    codes = codes.astype(jnp.uint32)
    low, odd = codes < 8, (codes & 4) != 0
    word = jnp.where(low, jnp.where(odd, second, first), jnp.where(odd, fourth, third))
    return centred((word >> ((codes & 3) << 3)) & 255, 128)
