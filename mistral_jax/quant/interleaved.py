"""Matrices of packed blocks in an order that suits integer products on CPUs: sixteen rows interleaved.

A product loads the codes of four columns of sixteen rows at once, and a row of activations adds to sixteen sums. What
it reads is one run of memory. The layout is described and made in `native/interleaved.h`. Fields are those of the
file: nothing is rounded, and values are the same. The size is that of the file's blocks, or a little more where scales
of four or six bits become bytes: 3 % in Q4_K, 19 % in Q2_K.

Activations are rounded to 8 bits, 32 at a time, as llama.cpp does. Sums of their products are exact, so a row has the
same bits for any number of tokens and sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from conversion.dequantize.parts import Layout, layout_of
from conversion.weights.ggml_types import GGMLType
from mistral_jax.quant.native import native

ROWS = 16
"""Rows of a tile."""
_CELL = 32
_VECTOR = 64
_TWICE_E2M1 = (0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12)


@partial(jax.tree_util.register_dataclass, data_fields=["tiles"], meta_fields=["kind", "shape"])
@dataclass(frozen=True, kw_only=True)
class InterleavedArray:
    """A matrix [out, in] of packed blocks, sixteen rows interleaved. Made by `interleaved`."""

    tiles: jax.Array
    """uint8 [ceil(out / 16), `tile_bytes`]; rows beyond `shape` are zeros."""
    kind: GGMLType
    """Static."""
    shape: tuple[int, int]
    """[out, in], static."""

    @property
    def nbytes(self) -> int:
        return self.tiles.nbytes

    def rows(self, index: jax.Array) -> jax.Array:
        """Rows by number: int [...] -> float32 [..., in]."""
        flat = index.reshape(-1)
        return _values(self.tiles[flat // ROWS], self.kind, flat % ROWS).reshape(*index.shape, -1)

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        """The plain matrix [out, in], with the bits of the file's blocks unpacked."""
        rows, columns = self.shape
        return _values(self.tiles, self.kind).reshape(-1, columns)[:rows].astype(dtype)


def can_interleave(kind: GGMLType) -> bool:
    """Whether this machine multiplies integers with weights of this type. The first call compiles (seconds)."""
    return native.available(kind)


@lru_cache(maxsize=64)
def _layout(kind: GGMLType) -> Layout:
    # The scales of MXFP4 are powers of two, which half floats do not reach.
    return Layout(group=32, planes=(4,), table=_TWICE_E2M1) if kind.name == "MXFP4" else layout_of(kind)


def _unit(kind: GGMLType) -> tuple[int, int, int]:
    """Bytes of codes, of scales or minima, and of the whole of a unit: one block of each of sixteen rows."""
    layout = _layout(kind)
    codes = kind.block_size // _CELL * sum(layout.planes) * _VECTOR
    scales = kind.block_size // layout.group * ROWS if layout.is_super else 0
    return codes, scales, codes + (2 if layout.has_minima else 1) * (scales + 2 * ROWS)


def tile_bytes(kind: GGMLType, columns: int) -> int:
    """Bytes of sixteen rows."""
    return columns // kind.block_size * _unit(kind)[2]


def interleaved_bytes(kind: GGMLType, shape: tuple[int, int]) -> int:
    """Bytes of a matrix [out, in] as an `InterleavedArray`."""
    return -(-shape[0] // ROWS) * tile_bytes(kind, shape[1])


@partial(jax.jit, static_argnames="kind")
def interleaved(raw: jax.Array, kind: GGMLType) -> InterleavedArray:
    """Interleave packed rows: uint8 [out, row_bytes].

    Raises:
      ValueError: types or shapes do not match.
      NativeError: see `can_interleave`.
    """
    columns = raw.shape[1] // kind.block_bytes * kind.block_size
    return InterleavedArray(
        tiles=native.interleave(raw, kind, tile_bytes(kind, columns)), kind=kind, shape=(raw.shape[0], columns)
    )


def product(x: jax.Array, weight: InterleavedArray) -> jax.Array:
    """`x` [R, in], rounded to 8 bits in blocks of 32, times `weight` [out, in] transposed: float32 [R, out].

    Its gradient is that of a product that does not round.
    """
    return _product(x.astype(jnp.float32), weight)


@jax.custom_vjp
def _product(x: jax.Array, weight: InterleavedArray) -> jax.Array:
    return native.integer_matmul(x, weight.tiles, weight.kind, weight.shape[0])


def _forward(x: jax.Array, weight: InterleavedArray) -> tuple[jax.Array, InterleavedArray]:
    return _product(x, weight), weight


def _backward(weight: InterleavedArray, gradient: jax.Array) -> tuple[jax.Array, InterleavedArray]:
    none = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jax.dtypes.float0), weight)
    return gradient @ weight.dequantize(), none


_product.defvjp(_forward, _backward)


def _values(tiles: jax.Array, kind: GGMLType, row: jax.Array | None = None) -> jax.Array:
    """uint8 [n, `tile_bytes`] -> float32 [n, 16, in].

    Args:
      row: int [n], the one row of each tile that is wanted: float32 [n, 1, in]
    """
    layout, (code_bytes, scale_bytes, unit_bytes) = _layout(kind), _unit(kind)
    units = tiles.reshape(tiles.shape[0], -1, unit_bytes)

    def by_row(first: int, nbytes: int, of_row: int) -> jax.Array:
        """Bytes of each unit from `first` on, in which each row has `of_row` in turn: [n, units, ..., rows, of_row]"""
        found = units[..., first : first + nbytes].reshape(*units.shape[:2], -1, ROWS, of_row)
        return found if row is None else jnp.take_along_axis(found, row[:, None, None, None, None], axis=3)

    codes = _codes(by_row(0, code_bytes, 4), layout.planes)
    whole = codes.astype(jnp.int32)
    whole = jnp.asarray(layout.table, jnp.int32)[whole] if layout.table else whole - layout.zero
    parts = 2 if layout.has_minima else 1

    def spread(part: int) -> jax.Array:
        """Scales or minima of each group: float32 [n, rows, groups, 1]"""
        halves = by_row(unit_bytes - (parts - part) * 2 * ROWS, 2 * ROWS, 2)
        dtype = jnp.bfloat16 if kind.name == "MXFP4" else jnp.float16
        scale = jax.lax.bitcast_convert_type(halves, dtype).astype(jnp.float32)  # [n, units, 1, rows]
        if layout.is_super:
            small = by_row(code_bytes + part * scale_bytes, scale_bytes, 1)[..., 0]
            scale = scale * jax.lax.bitcast_convert_type(small, jnp.int8).astype(jnp.float32)
        return scale.reshape(tiles.shape[0], -1, scale.shape[-1]).transpose(0, 2, 1)[..., None]

    x = spread(0) * whole.reshape(*whole.shape[:2], -1, layout.group).astype(jnp.float32)
    if layout.has_minima:
        x = x - spread(1)
    return x.reshape(*whole.shape)


def _codes(packed: jax.Array, planes: tuple[int, ...]) -> jax.Array:
    """uint8 [n, units, vectors, rows, 4] -> uint8 [n, rows, in]"""
    count, units, _, rows, _ = packed.shape
    cells = packed.reshape(count, units, -1, sum(planes), rows, 4)
    codes, shift, first = jnp.uint8(0), 0, 0
    for bits in planes:
        vectors = cells[..., first : first + bits, :, :]
        shifts = jnp.arange(0, 8, bits, dtype=jnp.uint8)[:, None, None, None]
        part = (vectors[..., None, :, :, :] >> shifts) & jnp.uint8(2**bits - 1)
        codes = codes | (part.reshape(*cells.shape[:3], 8, rows, 4) << shift)
        shift, first = shift + bits, first + bits
    return jnp.asarray(codes).transpose(0, 4, 1, 2, 3, 5).reshape(count, rows, -1)
