"""The shapes in which plain matrices are stored, padded with zeros: those whose products have the same bits for every
number of rows (see `mistral_jax.quant.dot`). No JAX here: estimates of memory need these shapes too.
"""

from __future__ import annotations

_OUTER_MULTIPLE = 16
"""The number of outputs is a multiple of this. Otherwise the bits depend on the number of rows: in float32 those of
outputs beyond a multiple of 8, in bfloat16 on processors with AMX those of fewer than 16 outputs."""
_LEAST_INNER, _WIDE = 32, 64
"""Minimum number of terms in each output's sum with at least `_WIDE` outputs ..."""
_LEAST_INNER_OF_FEW = 64
"""... and with fewer."""


def storable_shape(outer: int, inner: int) -> tuple[int, int]:
    """The smallest shape, at least [outer, inner] in each axis, that `mistral_jax.quant.dot.dot` accepts."""
    outer = -(-outer // _OUTER_MULTIPLE) * _OUTER_MULTIPLE
    return outer, max(inner, _LEAST_INNER if outer >= _WIDE else _LEAST_INNER_OF_FEW)


def storable_axis(size: int) -> int:
    """The smallest length, at least `size`, of an axis that is the output axis of one product and the summed axis of
    another one with at least `_WIDE` outputs."""
    return max(storable_shape(size, 1)[0], _LEAST_INNER)


def kv_bytes_per_token(*, num_layers: int, num_kv_heads: int, head_dim: int, itemsize: int) -> int:
    """Bytes of one token's keys and values in the cache, padding of the heads included.

    Sliding windows, which bound the tokens of some layers, are not considered.

    Args:
      itemsize: bytes of an element.
    """
    return 2 * num_layers * num_kv_heads * storable_axis(head_dim) * itemsize
