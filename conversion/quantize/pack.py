"""Values to packed rows, inside a jitted program: plain operations, nothing placed, nothing called on the host."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from conversion.quantize import small_blocks, super_blocks, table_blocks
from conversion.quantize.fields import magnitude
from conversion.weights.ggml_types import GGMLType

_BLOCKS: dict[str, Callable[[jax.Array], tuple[jax.Array, jax.Array]]] = {
    "Q4_0": small_blocks.q4_0,
    "Q4_1": small_blocks.q4_1,
    "Q5_0": small_blocks.q5_0,
    "Q5_1": small_blocks.q5_1,
    "Q8_0": small_blocks.q8_0,
    "Q2_K": super_blocks.q2_k,
    "Q3_K": super_blocks.q3_k,
    "Q4_K": super_blocks.q4_k,
    "Q5_K": super_blocks.q5_k,
    "Q6_K": super_blocks.q6_k,
    "IQ4_NL": table_blocks.iq4_nl,
    "IQ4_XS": table_blocks.iq4_xs,
}
_PLAIN = frozenset({"F32", "F16", "BF16"})

QUANTIZABLE = frozenset(_BLOCKS) | _PLAIN
"""Names of the types that `pack` and `quantize` write."""


def pack(values: jax.Array, kind: GGMLType) -> tuple[jax.Array, jax.Array]:
    """The packed rows of values, and whether they can be trusted. Pure and traceable.

    Args:
      values: [..., columns] of float32, bfloat16 or float16.
      kind: one of `QUANTIZABLE`, static.

    Returns:
      uint8 [..., row_bytes], and a bool []: False where block types met a value that is not finite, or one so large
        that a float16 scale overflows; for plain types, where a finite value is infinite in the new type.

    Raises:
      ValueError: a row is not a whole number of blocks, or the type is not in `QUANTIZABLE`.
    """
    row_bytes = kind.row_bytes(values.shape[-1])
    if kind.name in _PLAIN:
        plain = values.astype(kind.dtype)
        packed = lax.bitcast_convert_type(plain, jnp.uint8)
        sound = (jnp.isfinite(plain) | ~jnp.isfinite(values)).all()
    elif kind.name in _BLOCKS:
        blocks = values.astype(jnp.float32).reshape(-1, kind.block_size)
        packed, scales = _BLOCKS[kind.name](blocks)
        sound = jnp.isfinite(scales.astype(jnp.float16)).all() & jnp.isfinite(magnitude(blocks)).all()
    else:
        raise ValueError(f"{kind.name} cannot be written; these can: {', '.join(sorted(QUANTIZABLE))}")
    return packed.reshape(*values.shape[:-1], row_bytes), sound
