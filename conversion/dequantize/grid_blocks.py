"""Types of one to four bits whose codes are points of a lattice: an index stands for four or eight values at once, from
a table ("grid").

Each function takes blocks as uint8 [..., blocks, block_bytes] and returns float32 [..., blocks, <axes>], 256 values in
order.
Source: the block structs and tables of ggml-common.h and the dequantize_row functions of ggml-quants.c in llama.cpp.
The tables are taken from the gguf package. As they contain few distinct numbers, a point is packed into one word of
hexadecimal digits: one look-up gives all its values. All products are exact in float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from conversion.dequantize.fields import bits, centred, fold, half


@cache
def _table(name: str) -> np.ndarray[Any, np.dtype[np.uint32]]:
    """The points of a grid, each as digits that index the grid's distinct numbers, the first value in the lowest
    digit."""
    # Imported here, because importing the package takes longer than using it.
    from gguf import quants

    grid = getattr(quants, name)
    grid.init_grid()
    digits = np.searchsorted(np.asarray(grid.grid_map), grid.grid.reshape(grid.grid_shape)).astype(np.uint32)
    return np.bitwise_or.reduce(digits << (4 * np.arange(digits.shape[1], dtype=np.uint32)), axis=1)


def _digits(name: str, index: jax.Array, count: int) -> jax.Array:
    """The digits of grid points: [...] -> uint32 [..., count]"""
    point = jnp.asarray(_table(name))[index.astype(jnp.int32)]
    # A CPU would otherwise look the point up again for each of its values.
    point = jax.lax.platform_dependent(point, cpu=jax.lax.optimization_barrier, default=lambda point: point)
    return bits(point[..., None], 4, count) & 15


def _with_signs(values: jax.Array, signs: jax.Array) -> jax.Array:
    """float32 [..., 8], negative where the bits of a byte [...] are set, the lowest first."""
    flip = bits(signs.astype(jnp.uint32)[..., None], 1, 8) << 31
    return jax.lax.bitcast_convert_type(jax.lax.bitcast_convert_type(values, jnp.uint32) ^ flip, jnp.float32)


def _eighth_sign(seven: jax.Array) -> jax.Array:
    """Seven sign bits and an eighth that makes their number even."""
    return seven | ((jax.lax.population_count(seven) & 1) << 7)


def _words(block: jax.Array, start: int, stop: int, dtype: Any) -> jax.Array:
    """Little-endian words: [..., block_bytes] -> [..., words]"""
    return jax.lax.bitcast_convert_type(fold(block[..., start:stop], -1, np.dtype(dtype).itemsize), dtype)


def _iq2_values(digits: jax.Array) -> jax.Array:
    """8, 25, 43"""
    return centred(8 + 17 * digits + (digits >> 1), 0)


def iq2_xxs(block: jax.Array) -> jax.Array:
    pairs = fold(block[..., 2:], 8, 8)
    indices, rest = pairs[..., :4], _words(pairs, 4, 8, jnp.uint32)  # [.., 8, 4], [.., 8, 1]
    scale = half(block, 0, 2) * (centred(rest >> 28, 0) + 0.5) * 0.25
    signs = _eighth_sign(bits(rest, 7, 4))
    return _with_signs(scale[..., None] * _iq2_values(_digits("IQ2_XXS", indices, 8)), signs)


def iq2_xs(block: jax.Array) -> jax.Array:
    words = fold(_words(block, 2, 66, jnp.uint16), 8, 2, 2)
    scale = half(block, 0, 2) * (centred(bits(fold(block[..., 66:], 8, 1), 4, 2), 0) + 0.5) * 0.25
    signs = _eighth_sign(words >> 9)
    return _with_signs(scale[..., None, None] * _iq2_values(_digits("IQ2_XS", words & 511, 8)), signs)


def iq2_s(block: jax.Array) -> jax.Array:
    high = bits(fold(block[..., 66:74], 8, 1), 2, 4).astype(jnp.uint16) << 8
    indices = fold(block[..., 2:34], 8, 4).astype(jnp.uint16) | high
    scale = half(block, 0, 2) * (centred(bits(fold(block[..., 74:], 8, 1), 4, 2), 0) + 0.5) * 0.25
    values = _iq2_values(_digits("IQ2_S", fold(indices.reshape(*block.shape[:-1], 32), 8, 2, 2), 8))
    return _with_signs(scale[..., None, None] * values, fold(block[..., 34:66], 8, 2, 2))


def iq3_xxs(block: jax.Array) -> jax.Array:
    rest = _words(block, 66, 98, jnp.uint32)[..., None]  # [.., 8, 1]
    scale = half(block, 0, 2) * (centred(rest >> 28, 0) + 0.5) * 0.5
    digits = _digits("IQ3_XXS", fold(block[..., 2:66], 8, 4, 2), 4)
    # 4, 12, 20, ... 52, 62
    values = centred(4 + 8 * digits + 2 * (digits // 7), 0)
    return _with_signs(
        scale[..., None] * fold(values.reshape(*block.shape[:-1], 256), 8, 4, 8), _eighth_sign(bits(rest, 7, 4))
    )


def iq3_s(block: jax.Array) -> jax.Array:
    high = bits(fold(block[..., 66:74], 8, 1), 1, 8).astype(jnp.uint16) << 8
    indices = fold(block[..., 2:66], 8, 8).astype(jnp.uint16) | high
    scale = half(block, 0, 2) * centred(1 + 2 * bits(fold(block[..., 106:], 4, 1), 4, 2), 0)
    # 1, 3, 5, ... 15
    values = centred(1 + 2 * _digits("IQ3_S", indices, 4), 0).reshape(*block.shape[:-1], 4, 2, 4, 8)
    return _with_signs(scale[..., None, None] * values, fold(block[..., 74:106], 4, 2, 4))


def iq1_s(block: jax.Array) -> jax.Array:
    words = _words(block, 34, 50, jnp.uint16)[..., None]  # [.., 8, 1]
    scale = half(block, 0, 2) * centred(2 * ((words >> 12) & 7) + 1, 0)
    indices = fold(block[..., 2:34], 8, 4).astype(jnp.uint16) | (bits(words, 3, 4) << 8)
    offset = jnp.where(words >> 15, jnp.float32(-0.125), jnp.float32(0.125))
    return scale[..., None] * (centred(_digits("IQ1_S", indices, 8), 1) + offset[..., None])


def iq1_m(block: jax.Array) -> jax.Array:
    words = _words(block, 48, 56, jnp.uint16)
    # The highest four bits of each word are four bits of the float16.
    first, second, third, fourth = (words[..., i] >> 12 << 4 * i for i in range(4))
    whole = jax.lax.bitcast_convert_type(first | second | third | fourth, jnp.float16).astype(jnp.float32)
    scale = whole[..., None, None] * centred(2 * bits(words[..., None], 3, 4) + 1, 0)  # [.., 4, 4]
    fields = bits(fold(block[..., 32:48], 4, 4, 1), 4, 2)
    indices = fold(block[..., :32], 4, 4, 2).astype(jnp.uint16) | ((fields & 7).astype(jnp.uint16) << 8)
    offset = jnp.where(fields & 8, jnp.float32(-0.125), jnp.float32(0.125))
    return scale[..., None, None] * (centred(_digits("IQ1_M", indices, 8), 1) + offset[..., None])
