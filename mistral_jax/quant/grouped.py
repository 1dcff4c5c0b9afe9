"""Matrices of packed blocks in an order that suits GPUs: codes, scales and minima apart, each in reading order.

The blocks of ggml are read field by field, and half of the types have rows that are not aligned to more than two bytes.
Here the bits of codes lie in planes `[spans, out, bytes]`, so that a tile of output rows is one run of memory; scales,
and after them minima, as `[groups, out]`. The fields are those of the file (`conversion.dequantize.parts`): nothing is
rounded, and the values are the same. The size is that of the file's blocks, or a little more where scales of four or
six bits become bytes: 3 % in Q4_K, 19 % in Q2_K.

    a span of 256 columns in a plane of b bits: P = 32 b bytes; column c is in byte c % P, at bit b * (c // P)

Rows are filled up to a multiple of `ROWS`, columns to one of `SPAN`; scales there are zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp

from conversion.dequantize.parts import DIVISIBLE, Layout, layout_of, parts_of
from conversion.weights.ggml_types import GGMLType
from mistral_jax.quant.gpu_kernels import OUTPUTS

SPAN = 256
"""Columns of a super-block."""

ROWS = OUTPUTS
"""The number of output rows is filled up to a multiple of this: the kernel computes whole tiles."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["planes", "scales", "super_scales"],
    meta_fields=["kind", "shape"],
)
@dataclass(frozen=True, kw_only=True)
class GroupedArray:
    """A matrix [out, in] of packed blocks in groups. Made by `grouped`."""

    planes: tuple[jax.Array, ...]
    """uint8 [in' / 256, out', bytes] each, lowest bits of the codes first."""
    scales: jax.Array
    """[in' / group, out'], of types with minima twice as many rows, these after the scales: float16, or int8 or uint8
    of types with super-scales. In one array, as each costs the host time in every step."""
    super_scales: jax.Array | None
    """float16 [in' / 256, out'], or twice as many rows, as `scales`."""
    kind: GGMLType
    """One of `conversion.dequantize.parts.DIVISIBLE`, static."""
    shape: tuple[int, int]
    """[out, in], static."""

    @property
    def layout(self) -> Layout:
        return layout_of(self.kind)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(self))

    def rows(self, index: jax.Array) -> jax.Array:
        """Rows by number: int [...] -> float32 [..., in]."""
        few = jax.tree.map(lambda x: jnp.take(x, index.reshape(-1), axis=1), self)
        return _values(few)[:, : self.shape[1]].reshape(*index.shape, -1)

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        """The plain matrix [out, in], with the bits of the file's blocks unpacked."""
        rows, columns = self.shape
        return _values(self)[:rows, :columns].astype(dtype)


def can_group(kind: GGMLType) -> bool:
    return kind.name in DIVISIBLE


@lru_cache(maxsize=256)
def grouped_bytes(kind: GGMLType, shape: tuple[int, int]) -> int:
    """Bytes of a matrix [out, in] as a `GroupedArray`."""
    raw = jax.ShapeDtypeStruct((shape[0], kind.row_bytes(shape[1])), jnp.uint8)
    leaves = jax.tree.leaves(jax.eval_shape(partial(grouped, kind=kind), raw))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _values(array: GroupedArray) -> jax.Array:
    """float32 [out', in']"""
    layout = array.layout
    codes, shift = jnp.uint8(0), 0
    for plane, bits in zip(array.planes, layout.planes, strict=True):
        shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)[:, None]
        part = (plane[:, :, None] >> shifts) & jnp.uint8(2**bits - 1)  # [spans, out', values of a byte, bytes]
        codes = codes | (part.transpose(1, 0, 2, 3).reshape(plane.shape[1], -1) << shift)
        shift += bits
    codes = codes.reshape(codes.shape[0], -1, layout.group)

    x = array.scales.astype(jnp.float32)
    if array.super_scales is not None:
        x = jnp.repeat(array.super_scales.astype(jnp.float32), SPAN // layout.group, axis=0) * x
    scales, *minima = jnp.split(x.T[..., None], 2 if layout.has_minima else 1, axis=1)  # [out', groups, 1] each
    whole = codes.astype(jnp.int32)
    whole = jnp.asarray(layout.table, jnp.int32)[whole] if layout.table else whole - layout.zero
    x = scales * whole.astype(jnp.float32)
    if minima:
        x = x - minima[0]
    return x.reshape(x.shape[0], -1)


@partial(jax.jit, static_argnames="kind")
def grouped(raw: jax.Array, kind: GGMLType) -> GroupedArray:
    """Put packed rows in the order of `GroupedArray`: uint8 [out, row_bytes].

    Raises:
      KeyError: the type is not in `conversion.dequantize.parts.DIVISIBLE`.
    """
    layout, parts = layout_of(kind), parts_of(raw, kind)
    rows, columns = parts.codes.shape
    more_rows, more_columns = -rows % ROWS, -columns % SPAN

    def filled(x: jax.Array, columns: int) -> jax.Array:
        return jnp.pad(x, ((0, more_rows), (0, columns - x.shape[1])))

    codes = filled(parts.codes, columns + more_columns)
    planes: list[jax.Array] = []
    for bits in layout.planes:
        values = (codes & jnp.uint8(2**bits - 1)).reshape(codes.shape[0], -1, 8 // bits, SPAN * bits // 8)
        shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)[:, None]
        packed = jnp.sum(values << shifts, axis=2, dtype=jnp.uint8)  # [out', spans, bytes]
        planes.append(packed.transpose(1, 0, 2))
        codes = codes >> bits if bits < 8 else codes
    groups, supers = ((columns + more_columns) // size for size in (layout.group, SPAN))

    def by_group(scales: jax.Array | None, minima: jax.Array | None, count: int) -> jax.Array | None:
        found = [filled(x, count).T for x in (scales, minima) if x is not None]
        return jnp.concatenate(found) if found else None

    scales = by_group(parts.scales, parts.minima, groups)
    assert scales is not None
    return GroupedArray(
        planes=tuple(planes),
        scales=scales,
        super_scales=by_group(parts.super_scales, parts.super_minima, supers),
        kind=kind,
        shape=(rows, columns),
    )
