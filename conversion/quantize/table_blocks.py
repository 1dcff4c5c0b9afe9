"""Types whose 4-bit codes stand for the values of a table: IQ4_NL, blocks of 32, and IQ4_XS, blocks of 256.

Each function takes float32 [blocks, block_size] and returns the packed blocks, uint8 [blocks, block_bytes], and their
float16 scales, for the caller to check that they are finite. Source of the layouts: ggml-common.h in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from conversion.dequantize.small_blocks import IQ4_VALUES
from conversion.quantize.fields import as_row, half_bytes, join_fields, reciprocal
from conversion.quantize.search import fit_signed, signed_blocks

Packed = tuple[jax.Array, jax.Array]


def iq4_nl(x: jax.Array) -> Packed:
    unit = fit_signed(x, _level, IQ4_VALUES[0]).astype(jnp.float16)
    codes = _code(x * reciprocal(unit.astype(jnp.float32))[:, None])
    return as_row(half_bytes(unit), _nibbles(codes)), unit


def iq4_xs(x: jax.Array) -> Packed:
    found = signed_blocks(x, run=32, nearest=_level, least=IQ4_VALUES[0], top=32)
    scale = (found.scale + jnp.int8(32)).astype(jnp.uint8)
    low = join_fields((scale & 15).reshape(-1, 4, 2, 1), 4)
    high = join_fields((scale >> 4).reshape(-1, 2, 4, 1), 2)
    return as_row(half_bytes(found.unit), high, low, _nibbles(_code(found.level))), found.unit


def _level(x: jax.Array) -> jax.Array:
    """The nearest value of the table."""
    return _choose(x, [jnp.float32(value) for value in IQ4_VALUES])


def _code(x: jax.Array) -> jax.Array:
    """The code of the nearest value of the table."""
    return lax.optimization_barrier(_choose(x, [jnp.uint8(code) for code in range(16)]))


def _choose(x: jax.Array, choices: Sequence[jax.Array], first: int = 0) -> jax.Array:
    """The choice of the nearest table entry, by bisection: comparisons vectorise where a gather would not.

    Args:
      choices: for table entries `first` and up.
    """
    if len(choices) == 1:
        return choices[0]
    half = len(choices) // 2
    middle = (IQ4_VALUES[first + half - 1] + IQ4_VALUES[first + half]) / 2
    return jnp.where(x > middle, _choose(x, choices[half:], first + half), _choose(x, choices[:half], first))


def _nibbles(codes: jax.Array) -> jax.Array:
    """Byte i of each 32 values holds values i and i + 16."""
    return join_fields(codes.reshape(len(codes), -1, 2, 16), 4)
