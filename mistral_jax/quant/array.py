"""The forms of a weight matrix on the device, besides a plain array.

Each is a pytree: the leaves are arrays on the device, the rest is static. Any of them can be a module's `weight`.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from conversion.dequantize import unpack
from conversion.weights.ggml_types import GGMLType
from conversion.weights.stored_shapes import storable_shape
from mistral_jax.quant.grouped import GroupedArray
from mistral_jax.quant.interleaved import InterleavedArray


@partial(jax.tree_util.register_dataclass, data_fields=["raw"], meta_fields=["kind"])
@dataclass(frozen=True)
class QuantizedArray:
    """A matrix [out, in] in ggml blocks, byte for byte as in a GGUF file. Orders that suit kernels better are those of
    `mistral_jax.quant.grouped` (GPUs) and `mistral_jax.quant.interleaved` (CPUs)."""

    raw: jax.Array
    """uint8 [out, row_bytes]"""
    kind: GGMLType
    """One of `conversion.dequantize.UNPACKABLE`, static."""

    @property
    def shape(self) -> tuple[int, int]:
        rows, row_bytes = self.raw.shape
        return rows, row_bytes // self.kind.block_bytes * self.kind.block_size

    @property
    def nbytes(self) -> int:
        return self.raw.nbytes

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        """The plain matrix [out, in]."""
        return unpack(self.raw, self.kind, dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scales"], meta_fields=[])
@dataclass(frozen=True)
class Int8Array:
    """A matrix [out, in] of 8-bit integers with one scale for each row: `values * scales[:, None]`.

    Products round the activations to 8 bits as well, with one scale for each row, and multiply integers; those by
    `mistral_jax.quant.matrix_kernel`, on a GPU, leave activations as they are.
    """

    values: jax.Array
    """int8 [out, in]"""
    scales: jax.Array
    """float32 [out]"""

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.values.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        """The plain matrix [out, in]."""
        return (self.values.astype(jnp.float32) * self.scales[:, None]).astype(dtype)


@partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["shape"])
@dataclass(frozen=True)
class PaddedArray:
    """A plain matrix, zero-padded because products with its own shape would have bits that depend on the number of rows
    (see `mistral_jax.quant.dot`). Made by `padded`."""

    values: jax.Array
    """[out', in'], the `storable_shape` of `shape`; zeros beyond `shape`."""
    shape: tuple[int, int]
    """[out, in], static."""

    @property
    def dtype(self) -> jnp.dtype:
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        return self.values.nbytes

    def __getitem__(self, index: Any) -> jax.Array:
        """Index the plain matrix."""
        return self.dequantize(self.dtype)[index]

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        """The plain matrix [out, in]."""
        rows, columns = self.shape
        return self.values[:rows, :columns].astype(dtype)


def padded(matrix: jax.Array) -> jax.Array | PaddedArray:
    """A plain matrix [out, in] in a form that products accept: unchanged if its shape allows it, else zero-padded."""
    rows, columns = matrix.shape
    stored_rows, stored_columns = storable_shape(rows, columns)
    if (rows, columns) == (stored_rows, stored_columns):
        return matrix
    return PaddedArray(jnp.pad(matrix, ((0, stored_rows - rows), (0, stored_columns - columns))), (rows, columns))


@partial(jax.tree_util.register_dataclass, data_fields=["parts"], meta_fields=[])
@dataclass(frozen=True)
class RowStack:
    """Matrices of different forms, stacked by rows: a fused projection whose parts a file quantises differently."""

    parts: tuple[QuantizedArray | GroupedArray | InterleavedArray | Int8Array | PaddedArray | jax.Array, ...]
    """[out_i, in] each."""

    @property
    def shape(self) -> tuple[int, int]:
        return sum(part.shape[0] for part in self.parts), self.parts[0].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        """The plain matrix [out, in]."""
        return jnp.concatenate([dense(part, dtype) for part in self.parts])


Packed = QuantizedArray | GroupedArray | InterleavedArray | Int8Array | RowStack
Plain = jax.Array | PaddedArray
"""A matrix of floats."""
Undivided = Plain | Packed
"""A matrix on one device, or replicated on several."""


@partial(jax.tree_util.register_dataclass, data_fields=["local"], meta_fields=["sizes", "mesh", "gathers"])
@dataclass(frozen=True)
class SplitRows:
    """A matrix [out, in] whose rows are sharded over the devices of a mesh with one axis. Made by
    `mistral_jax.quant.split.split_rows`.

    Each device multiplies by its own rows with the code of a single device. Each part of a fused matrix is sharded
    separately, so that a device has whole heads of q, k and v, and the same elements of gate and up:

        declared order    q0 q1 q2 q3 | k0 k1 | v0 v1
        device 0          q0 q1 | k0 | v0
        device 1          q2 q3 | k1 | v1
    """

    local: Undivided
    """Its arrays stack the rows of all devices; its static fields are those of one device."""
    sizes: tuple[int, ...]
    """Static: number of rows of each part, multiples of the number of devices."""
    mesh: Mesh
    """Static."""
    gathers: bool
    """Static: whether a product gathers all outputs on each device; else each device keeps its own."""

    @property
    def shape(self) -> tuple[int, int]:
        return sum(self.sizes), self.local.shape[1]

    @property
    def dtype(self) -> jnp.dtype:
        """Only for plain matrices."""
        assert isinstance(self.local, Plain)
        return self.local.dtype

    @property
    def nbytes(self) -> int:
        """Total of all devices."""
        return self.local.nbytes

    def dequantize(self, dtype: jax.typing.DTypeLike = jnp.float32) -> jax.Array:
        """The plain matrix [out, in], rows in the declared order, replicated on each device."""
        return _rows_in_order(self, jnp.dtype(dtype))

    def by_part(self, y: jax.Array, axis: int) -> list[jax.Array]:
        """Split an array, whose axis `axis` has the rows device by device, into the parts in the declared order."""
        before, after = y.shape[:axis], y.shape[axis + 1 :]
        ends = itertools.accumulate(size // self.mesh.size for size in self.sizes[:-1])
        pieces = jnp.split(y.reshape(*before, self.mesh.size, -1, *after), list(ends), axis=axis + 1)
        return [piece.reshape(*before, -1, *after) for piece in pieces]

    def whole(self, x: jax.Array) -> jax.Array:
        """Replicate an array on each device."""
        return lax.with_sharding_constraint(x, NamedSharding(self.mesh, PartitionSpec()))


@partial(jax.jit, static_argnames="dtype")
def _rows_in_order(weight: SplitRows, dtype: jnp.dtype) -> jax.Array:
    divided = PartitionSpec(*weight.mesh.axis_names)
    rows = jax.shard_map(
        lambda local: dense(local, dtype), mesh=weight.mesh, in_specs=divided, out_specs=divided, check_vma=False
    )(weight.local)
    return weight.whole(jnp.concatenate(weight.by_part(rows, axis=0)))


Weight = Undivided | SplitRows
"""The weight of a linear layer or an embedding."""


def dense(weight: Weight, dtype: jax.typing.DTypeLike) -> jax.Array:
    """The plain array of a weight of any form."""
    return weight.dequantize(dtype) if isinstance(weight, PaddedArray | Packed | SplitRows) else weight.astype(dtype)


@partial(jax.jit, static_argnames="dtype")
def _row_scales(weight: jax.Array, dtype: str) -> jax.Array:
    largest = jnp.max(jnp.abs(weight.astype(jnp.float32)), axis=-1)
    return (jnp.where(largest > 0, largest, 1.0) / 127).astype(dtype)


@partial(jax.jit, donate_argnums=0)
def _to_int8(weight: jax.Array, scales: jax.Array) -> jax.Array:
    return jnp.round(weight.astype(jnp.float32) / scales[:, None]).astype(jnp.int8)


def int8_array(weight: jax.Array) -> Int8Array:
    """Round a matrix [out, in] to 8 bits with one scale for each row. `weight` is donated."""
    scales = _row_scales(weight, "float32")
    return Int8Array(_to_int8(weight, scales), scales)
