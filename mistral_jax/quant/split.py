"""Sharding the rows of a matrix over devices."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import jax
import jax.numpy as jnp

from mistral_jax.quant.array import Int8Array, Plain, QuantizedArray, RowStack, SplitRows, Undivided, dense, padded
from mistral_jax.quant.grouped import GroupedArray
from mistral_jax.quant.interleaved import InterleavedArray
from mistral_jax.quant.placement import Placement


def split_rows(weight: Undivided, sizes: Sequence[int], placement: Placement, *, gathers: bool) -> SplitRows:
    """Shard a matrix that is on one device. Packed rows are moved without being unpacked.

    Args:
      sizes: number of rows of each part, multiples of the number of devices.
      gathers: see `SplitRows`.
    """
    firsts = [0, *accumulate(sizes[:-1])]
    pieces: list[Undivided] = []
    for shard in range(placement.count):
        counts = [size // placement.count for size in sizes]
        starts = [first + shard * count for first, count in zip(firsts, counts, strict=True)]
        pieces.append(_rows(weight, [(start, start + count) for start, count in zip(starts, counts, strict=True)]))
    local = jax.tree.map(lambda *arrays: placement.put_pieces(arrays), *pieces)
    return SplitRows(local, tuple(sizes), placement.mesh, gathers)


def _rows(weight: Undivided, ranges: Sequence[tuple[int, int]]) -> Undivided:
    """Ranges of rows, stacked, in the same form."""

    def taken(array: jax.Array) -> jax.Array:
        return jnp.concatenate([array[start:stop] for start, stop in ranges])

    match weight:
        case QuantizedArray():
            return QuantizedArray(taken(weight.raw), weight.kind)
        case GroupedArray() | InterleavedArray():
            raise TypeError("cannot shard blocks in an order of their own; expected them in the file's order")
        case Int8Array():
            return Int8Array(taken(weight.values), taken(weight.scales))
        case RowStack():
            stacked: list[QuantizedArray | Int8Array | Plain] = []
            first = 0
            for part in weight.parts:
                last = first + part.shape[0]
                own = [(start - first, stop - first) for start, stop in ranges if first <= start < last]
                rows = _rows(part, own)
                assert not isinstance(rows, RowStack | GroupedArray | InterleavedArray)
                stacked.append(rows)
                first = last
            return RowStack(tuple(stacked))
        case _:
            return padded(taken(dense(weight, weight.dtype)))
