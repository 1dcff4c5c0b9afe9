"""Loads one weight from files to the device, in its planned form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby

import jax
import jax.numpy as jnp
import numpy as np

from conversion.quantize import quantize
from conversion.weights.ggml_types import BY_NAME, GGMLType
from conversion.weights.stored_shapes import storable_shape
from conversion.weights.tensor_source import Array, PackedSource, TensorSource, aligned_empty
from conversion.weights.weight_forms import KEPT_PACKED, Form
from mistral_jax.quant.array import (
    Int8Array,
    PaddedArray,
    Plain,
    QuantizedArray,
    RowStack,
    Undivided,
    int8_array,
    padded,
)
from mistral_jax.quant.grouped import GroupedArray, can_group, grouped
from mistral_jax.quant.interleaved import InterleavedArray, can_interleave, interleaved
from mistral_jax.quant.placement import Placement
from mistral_jax.quant.plan import BlockOrder, stored_kind
from mistral_jax.quant.product import unpacked

_BFLOAT16 = np.dtype(jnp.bfloat16)


def load_weight(
    source: TensorSource,
    parts: Sequence[tuple[str, Form]],
    *,
    dtype: np.dtype,
    placement: Placement,
    order: BlockOrder = "file",
) -> Undivided:
    """Read tensors and stack them by rows to one weight.

    Host memory: one group of tensors of the same form. Waits until the weight is on the device.

    Args:
      parts: (tensor name, form) pairs in the order of their rows.
      dtype: of plain arrays.
      placement: one device.
      order: of packed blocks, those of types that have it.
    """
    loaded: list[QuantizedArray | GroupedArray | InterleavedArray | Int8Array | Plain] = []
    for form, group in groupby(parts, key=lambda part: part[1]):
        names = [name for name, _ in group]
        weight = _load(source, names, form, dtype, placement)
        loaded.append(jax.block_until_ready(_ordered(weight, order) if isinstance(weight, QuantizedArray) else weight))
    return loaded[0] if len(loaded) == 1 else RowStack(tuple(loaded))


def _ordered(weight: QuantizedArray, order: BlockOrder) -> QuantizedArray | GroupedArray | InterleavedArray:
    # Pallas counts elements in 32 bits.
    if order == "groups" and can_group(weight.kind) and weight.nbytes < 2**31:
        return grouped(weight.raw, weight.kind)
    if order == "interleaved" and can_interleave(weight.kind):
        return interleaved(weight.raw, weight.kind)
    return weight


def _load(
    source: TensorSource, names: list[str], form: Form, dtype: np.dtype, placement: Placement
) -> QuantizedArray | Int8Array | Plain:
    kind = BY_NAME.get(form)
    if kind is not None and all(stored_kind(source, name) == kind for name in names):
        return QuantizedArray(_packed(source, names, kind, placement), kind)
    if form == "dense":
        return _dense(source, names, dtype, placement)
    plain = _plain(source, names, _stored_dtype(source, names), placement)
    if kind is not None:
        return QuantizedArray(quantize(plain, kind), kind)
    return int8_array(plain)


def _stored_dtype(source: TensorSource, names: list[str]) -> np.dtype:
    """The type to quantise from: that of the files, so that values are not rounded twice."""
    dtypes = {source.dtype(name) for name in names}
    dtype = dtypes.pop()
    return dtype if not dtypes and dtype in (np.float16, _BFLOAT16) else np.dtype(np.float32)


def _packed(source: TensorSource, names: list[str], kind: GGMLType, placement: Placement) -> jax.Array:
    assert isinstance(source, PackedSource)
    row = (kind.row_bytes(source.shape(names[0])[1]),)
    return _stacked(source, names, row, np.dtype(np.uint8), source.read_packed, placement)


def _dense(source: TensorSource, names: list[str], dtype: np.dtype, placement: Placement) -> Plain:
    """Tensors stacked by rows, padded where products need it."""
    row = source.shape(names[0])[1:]
    if len(row) != 1:
        return _plain(source, names, dtype, placement)  # a vector: norm or bias
    shape = (sum(source.shape(name)[0] for name in names), row[0])
    stored = storable_shape(*shape)
    if stored == shape or stored[1] != shape[1] or _unpacked_on_device(source, names) is not None:
        plain = _plain(source, names, dtype, placement)
        return plain if stored == shape else padded(plain)
    # Read directly into the padded buffer: memory may not hold a second copy of a large matrix.
    values = _stacked(source, names, row, dtype, source.read_into, placement, rows=stored[0])
    return PaddedArray(values, shape)


def _unpacked_on_device(source: TensorSource, names: list[str]) -> GGMLType | None:
    """The block type to unpack on the device; None if the host reads floats."""
    kinds = {stored_kind(source, name) for name in names}
    kind = kinds.pop()
    return kind if not kinds and kind is not None and kind.name in KEPT_PACKED else None


def _plain(source: TensorSource, names: list[str], dtype: np.dtype, placement: Placement) -> jax.Array:
    kind = _unpacked_on_device(source, names)
    row = source.shape(names[0])[1:]
    if kind is not None and len(row) == 1:
        return _unpacked(_packed(source, names, kind, placement), kind, dtype)
    return _stacked(source, names, row, dtype, source.read_into, placement)


def _stacked(
    source: TensorSource,
    names: list[str],
    row: tuple[int, ...],
    dtype: np.dtype,
    read: Callable[[str, Array], None],
    placement: Placement,
    *,
    rows: int | None = None,
) -> jax.Array:
    """Tensors stacked by rows in one array; each row has the shape `row`. `read` fills in each tensor.

    Args:
      rows: of the array, the further ones zero; None: those of the tensors.
    """
    counts = [source.shape(name)[0] for name in names]
    buffer = aligned_empty((rows or sum(counts), *row), dtype)
    buffer[sum(counts) :] = 0
    first = 0
    for name, count in zip(names, counts, strict=True):
        read(name, buffer[first : first + count])
        first += count
    return placement.put(buffer)


_unpacked = jax.jit(unpacked, static_argnames=("kind", "dtype"))
