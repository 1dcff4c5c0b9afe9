"""Products of activations with packed weights.

The method depends on the device and on how many tokens of a sequence are computed together. On a CPU it never depends
on the number of *sequences*: a row has the same bits alone and in a batch.

- On a CPU, up to `FEW_TOKENS` tokens of each sequence (decoding) use the native kernel, which unpacks in registers and
  reads each weight once, at memory bandwidth. For more tokens (prefill), weights are unpacked a cache-sized tile at a
  time and multiplied by XLA's dot. Without a compiler for the kernel, XLA also unpacks the tiles.
- On a CPU, activations may be rounded to 8 bits (`InterleavedArray`): then one kernel multiplies integers for any
  number of tokens.
- On a GPU for which there is a kernel (`mistral_jax.quant.grouped_kernel`), that multiplies; weights are loaded in an
  order that suits it (`GroupedArray`). In float32, for which GPUs have no tensor cores, the matrix is unpacked and
  multiplied by a dot for many rows.
- Plain matrices and those of 8-bit integers are multiplied by XLA, or on such a GPU by
  `mistral_jax.quant.matrix_kernel`.
- On other devices, up to `_FUSED_ROWS` rows of a program are multiplied and summed in one fused pass over the packed
  bytes; for more, the whole matrix is unpacked and multiplied by a dot.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec

from conversion.dequantize import unpack
from conversion.weights.ggml_types import GGMLType
from mistral_jax.quant.array import (
    Int8Array,
    Packed,
    PaddedArray,
    Plain,
    QuantizedArray,
    RowStack,
    SplitRows,
    Undivided,
    Weight,
    padded,
)
from mistral_jax.quant.dot import dot, rounded_product
from mistral_jax.quant.grouped import GroupedArray
from mistral_jax.quant.grouped_kernel import product
from mistral_jax.quant.interleaved import InterleavedArray
from mistral_jax.quant.interleaved import product as integer_product
from mistral_jax.quant.matrix_kernel import MOST_ROWS
from mistral_jax.quant.matrix_kernel import product as matrix_product
from mistral_jax.quant.native import native

_CPU_TILE_BYTES = 4 * 2**20
"""Size of a tile of unpacked weights: it stays in the last-level cache between unpacking and the dot."""
FEW_TOKENS = 8
"""Tokens of a sequence that are multiplied as one is: tokens that a decode step runs together have the bits that each
would have alone."""
_FUSED_ROWS = 8
"""Maximum rows for which devices other than CPUs unpack inside the product: each row unpacks all weights."""


def matmul(x: jax.Array, weight: Weight, *, by_kernel: bool = False) -> jax.Array:
    """`x` [..., in] times `weight` [out, in] transposed, in any form: float32 [..., out].

    The result is not fused with later operations, so a row has the same bits in every program and every batch.

    Args:
      by_kernel: static; whether the kernel of `mistral_jax.quant.matrix_kernel` works for plain matrices and for 8-bit
        integers, and activations have its types.
    """
    if isinstance(weight, SplitRows):
        y = _divided_product(x, weight)
        return y if len(weight.sizes) == 1 else jnp.concatenate(weight.by_part(y, axis=y.ndim - 1), axis=-1)
    if isinstance(weight, Packed):
        return packed_product(x, weight, by_kernel=by_kernel)
    rows = x.reshape(-1, x.shape[-1])
    if not by_kernel or rows.shape[0] > MOST_ROWS:
        return _plain_product(x, weight)
    y = matrix_product(rows, weight.values if isinstance(weight, PaddedArray) else weight, None)
    return y[:, : weight.shape[0]].reshape(*x.shape[:-1], weight.shape[0])


def matmul_by_part(x: jax.Array, weight: SplitRows) -> list[jax.Array]:
    """`x` [..., in] times each part [out_p, in] of a sharded matrix, transposed: float32 [..., out_p], each sharded
    along its last axis unless the weight gathers its outputs."""
    return weight.by_part(_divided_product(x, weight), axis=x.ndim - 1)


def _divided_product(x: jax.Array, weight: SplitRows) -> jax.Array:
    """float32 [..., out], device by device. Each device reads the whole `x`, so that no sum is split."""
    (axis,) = weight.mesh.axis_names

    def product(x: jax.Array, local: Undivided) -> jax.Array:
        y = matmul(x, local)
        return lax.all_gather(y, axis, axis=y.ndim - 1, tiled=True) if weight.gathers else y

    outputs = PartitionSpec() if weight.gathers else PartitionSpec(*[None] * (x.ndim - 1), axis)
    specs = (PartitionSpec(), PartitionSpec(axis))
    return jax.shard_map(product, mesh=weight.mesh, in_specs=specs, out_specs=outputs, check_vma=False)(x, weight.local)


def take_rows(weight: Weight, rows: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """Rows of `weight` [out, in] by number: int [...] -> `dtype` [..., in]."""
    match weight:
        case SplitRows():
            raise TypeError("cannot take rows of a sharded matrix; expected one that each device has")
        case PaddedArray():
            return weight.values[rows][..., : weight.shape[1]].astype(dtype)
        case QuantizedArray() | GroupedArray() | InterleavedArray() | Int8Array() | RowStack():
            # The barrier keeps unpacking's last product from being fused with a sum that only some programs have.
            return lax.optimization_barrier(packed_rows(weight, rows).astype(dtype))
        case _:
            return weight[rows].astype(dtype)


def _plain_product(x: jax.Array, weight: Plain) -> jax.Array:
    if not isinstance(weight, PaddedArray):
        return dot(x, weight)
    rows, columns = weight.shape
    spare = weight.values.shape[1] - columns
    if spare:
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, spare)])
    return dot(x, weight.values)[..., :rows]


def packed_product(x: jax.Array, weight: Packed, *, by_kernel: bool = False) -> jax.Array:
    """`x` [..., in] times `weight` [out, in] transposed: float32 [..., out].

    With three or more axes, the second-to-last axis of `x` is that of a sequence's tokens.

    Args:
      by_kernel: see `matmul`.
    """
    match weight:
        case QuantizedArray():
            return _blocks_product(x, weight)
        case GroupedArray():
            return _grouped_product(x, weight)
        case InterleavedArray():
            y = integer_product(x.reshape(-1, x.shape[-1]), weight)
            return y.reshape(*x.shape[:-1], weight.shape[0])
        case Int8Array() if by_kernel:
            y = matrix_product(x.reshape(-1, x.shape[-1]), weight.values, weight.scales)
            return y.reshape(*x.shape[:-1], weight.shape[0])
        case Int8Array():
            return _int8_product(x, weight)
        case RowStack():
            return jnp.concatenate([matmul(x, part, by_kernel=by_kernel) for part in weight.parts], axis=-1)


def packed_rows(weight: Packed, rows: jax.Array) -> jax.Array:
    """Rows of a packed matrix [out, in] by number: int [...] -> float32 [..., in]."""
    match weight:
        case QuantizedArray():
            return unpack(weight.raw[rows], weight.kind, jnp.dtype(jnp.float32))
        case GroupedArray() | InterleavedArray():
            return weight.rows(rows)
        case Int8Array():
            return weight.values[rows].astype(jnp.float32) * weight.scales[rows][..., None]
        case RowStack():
            raise TypeError("cannot take rows of a stack of matrices; expected one matrix")


def _int8_product(x: jax.Array, weight: Int8Array) -> jax.Array:
    y = x.astype(jnp.float32)
    largest = jnp.max(jnp.abs(y), axis=-1, keepdims=True)
    scale = jnp.where(largest > 0, largest, 1.0) / 127
    # Not divided by the scale: XLA makes that a multiplication by the reciprocal in some programs and not in others.
    # The barriers keep its CPU backend from fusing rounding or scales with the product, which halves its speed.
    rounded = lax.optimization_barrier(jnp.round(y * (1.0 / scale)).astype(jnp.int8))
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    exact = lax.dot_general(rounded, weight.values, axes, preferred_element_type=jnp.int32)

    def on_cpu(exact: jax.Array, scale: jax.Array, scales: jax.Array) -> jax.Array:
        exact = lax.optimization_barrier(exact)
        # Without this barrier, some programs fuse the last multiplication with the sum that follows, and others do not.
        return lax.optimization_barrier(exact.astype(jnp.float32) * scale * scales)

    def elsewhere(exact: jax.Array, scale: jax.Array, scales: jax.Array) -> jax.Array:
        # Barriers would be kernels of their own.
        return rounded_product(exact.astype(jnp.float32) * scale, scales)

    return lax.platform_dependent(exact, scale, weight.scales, cpu=on_cpu, default=elsewhere)


def _grouped_product(x: jax.Array, weight: GroupedArray) -> jax.Array:
    rows = x.reshape(-1, x.shape[-1])
    if _few_tokens(x) or x.dtype.itemsize == 2:
        y = product(rows, weight)
    else:
        y = _plain_product(rows, padded(lax.optimization_barrier(weight.dequantize(x.dtype))))
    return y.reshape(*x.shape[:-1], weight.shape[0])


def _few_tokens(x: jax.Array) -> bool:
    """Whether the rows [..., in] are of few tokens of each sequence."""
    return x.ndim < 3 or x.shape[-2] <= FEW_TOKENS


def _blocks_product(x: jax.Array, weight: QuantizedArray) -> jax.Array:
    y = _product_of_rows(x.reshape(-1, x.shape[-1]), weight.raw, kind=weight.kind, few_tokens=_few_tokens(x))
    return y.reshape(*x.shape[:-1], weight.shape[0])


# Jitted separately, so that layers with weights of the same shape are traced only once.
@partial(jax.jit, static_argnames=("kind", "few_tokens"), inline=True)
def _product_of_rows(x: jax.Array, raw: jax.Array, *, kind: GGMLType, few_tokens: bool) -> jax.Array:
    """`x` [M, in] times packed rows [out, row_bytes]: float32 [M, out]."""

    def on_cpu(x: jax.Array, raw: jax.Array) -> jax.Array:
        if few_tokens and native.available(kind):
            return _native_product(x, raw, kind)
        return _tiled_product(x, raw, kind)

    def elsewhere(x: jax.Array, raw: jax.Array) -> jax.Array:
        if x.shape[0] <= _FUSED_ROWS:
            return fused_product(x, raw, kind)
        return _plain_product(x, padded(lax.optimization_barrier(unpack(raw, kind, x.dtype))))

    return lax.platform_dependent(x, raw, cpu=on_cpu, default=elsewhere)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _native_product(x: jax.Array, raw: jax.Array, kind: GGMLType) -> jax.Array:
    """By the kernel, whose gradient is that of the tiled product: training runs short sequences, too."""
    return native.matmul(x.astype(jnp.float32), raw, kind)


def _native_forward(x: jax.Array, raw: jax.Array, kind: GGMLType) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _native_product(x, raw, kind), (x, raw)


def _native_backward(
    kind: GGMLType, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, np.ndarray]:
    x, raw = kept
    _, back = jax.vjp(lambda x: _tiled_product(x, raw, kind), x)
    return (*back(gradient), np.zeros(raw.shape, jax.dtypes.float0))


_native_product.defvjp(_native_forward, _native_backward)


def _tiled_product(x: jax.Array, raw: jax.Array, kind: GGMLType) -> jax.Array:
    """Unpack a tile of rows at a time, in the type of `x` [M, in], and multiply by it: float32 [M, out]."""
    out = raw.shape[0]
    tile = min(out, max(64, _CPU_TILE_BYTES // (x.shape[1] * x.dtype.itemsize) // 64 * 64))

    def product(first: jax.Array | int, count: int) -> jax.Array:
        # Without the barrier XLA unpacks inside the dot, element by element.
        return _plain_product(x, padded(lax.optimization_barrier(_unpack_on_cpu(raw, kind, x.dtype, first, count))))

    whole = out // tile
    if whole == 1:
        parts = [product(0, tile)]
    else:

        def step(i: jax.Array, y: jax.Array) -> jax.Array:
            return lax.dynamic_update_slice(y, product(i * tile, tile), (0, i * tile))

        parts = [lax.fori_loop(0, whole, step, jnp.zeros((x.shape[0], whole * tile), jnp.float32))]
    if out % tile:
        parts.append(product(whole * tile, out % tile))
    return jnp.concatenate(parts, axis=-1)


def _unpack_on_cpu(raw: jax.Array, kind: GGMLType, dtype: jnp.dtype, first: jax.Array | int, count: int) -> jax.Array:
    """Unpack `count` rows of a packed matrix from row `first` on: [count, in]."""
    if native.available(kind):
        made = dtype if dtype in (jnp.float32, jnp.bfloat16) else jnp.dtype(jnp.float32)
        return native.dequantize(raw, kind, made, first=first, count=count).astype(dtype)
    return unpack(lax.dynamic_slice_in_dim(raw, first, count), kind, dtype)


def unpacked(raw: jax.Array, kind: GGMLType, dtype: jnp.dtype) -> jax.Array:
    """Unpack [out, row_bytes] to the plain matrix [out, in], in the device's fastest way."""
    return lax.platform_dependent(
        raw,
        cpu=lambda raw: _unpack_on_cpu(raw, kind, dtype, 0, raw.shape[0]),
        default=lambda raw: unpack(raw, kind, dtype),
    )


def fused_product(x: jax.Array, raw: jax.Array, kind: GGMLType) -> jax.Array:
    """Multiply and sum, written so that GPU compilers unpack inside the reduction and store nothing."""
    weight = unpack(raw, kind, jnp.dtype(jnp.float32))
    return jnp.sum(x.astype(jnp.float32)[:, None] * weight[None], axis=-1)
