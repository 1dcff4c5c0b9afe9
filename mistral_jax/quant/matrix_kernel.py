"""Products with matrices of 16-bit floats or of 8-bit integers, as one kernel for NVIDIA GPUs, in Pallas for Triton.

XLA chooses a kernel for each shape of a product by timing several. So a row's bits may differ between programs that
compute it beside other rows: one step and several tokens at once, plain and speculative. And for integers of 8 bits,
XLA needs kernels that round the activations. Here an instance computes a tile of outputs for a tile of rows, reads each
weight once, and adds up columns in their order; where a matrix has too few outputs to occupy a GPU, the columns are
divided into parts, whose results are added up afterwards, also in order. The number of parts depends on the matrix
alone. On the tensor cores a row's sum does not depend on the other rows of a tile, so a row has the same bits for every
number of rows up to `MOST_ROWS`.

Axis letters: M rows, N outputs, K columns.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from mistral_jax.quant.dot import precision_of
from mistral_jax.quant.gpu_kernels import FEW_TILES, OUTPUTS, Tiling, agrees, run_kernel, tile_dot, triton
from mistral_jax.quant.placement import Placement

MOST_ROWS = 128
"""Rows up to which plain matrices are multiplied by the kernel. More are bound by arithmetic, which XLA does better."""

_WIDTH = 128
"""Columns that are multiplied at once."""


class _Shape(NamedTuple):
    """Static sizes of one call."""

    tiling: Tiling
    """Its steps are of `_WIDTH` columns."""
    columns: int
    """K"""
    by_assembly: bool
    """Whether integers are converted by PTX instructions of our own."""


@jax.custom_vjp
def product(x: jax.Array, values: jax.Array, scales: jax.Array | None) -> jax.Array:
    """`x` [M, K] times a matrix [N, K] transposed: float32 [M, N]. Differentiable in `x` and in a plain matrix.

    Args:
      values: the matrix, in the type of `x`; or its integers, int8.
      scales: float32 [N], of the rows of integers; None for a plain matrix.
    """
    return _by_platform(x, values, scales)


def _forward(x: jax.Array, values: jax.Array, scales: jax.Array | None) -> tuple[jax.Array, Any]:
    return _by_platform(x, values, scales), (x, values, scales)


def _backward(held: tuple[jax.Array, jax.Array, jax.Array | None], slope: jax.Array) -> tuple[Any, Any, Any]:
    x, values, scales = held

    def times(x: jax.Array, y: jax.Array) -> jax.Array:
        return jnp.matmul(x, y, precision=precision_of(x), preferred_element_type=jnp.float32)

    if scales is None:
        return times(slope, values).astype(x.dtype), times(slope.T, x).astype(values.dtype), None
    back = times(slope * scales, values.astype(jnp.float32))
    return back.astype(x.dtype), np.zeros(values.shape, jax.dtypes.float0), jnp.zeros_like(scales)


product.defvjp(_forward, _backward)


@partial(jax.jit, inline=True)
def _by_platform(x: jax.Array, values: jax.Array, scales: jax.Array | None) -> jax.Array:
    return run_kernel(_product, x, values, scales)


def _product(x: jax.Array, values: jax.Array, scales: jax.Array | None, *, interpret: bool) -> jax.Array:
    M, K = x.shape
    tiling = Tiling(M, values.shape[0], pl.cdiv(K, _WIDTH))
    shape = _Shape(tiling, K, by_assembly=scales is not None and not interpret and x.dtype.itemsize == 2)
    arrays, name = ((values,), "plain") if scales is None else ((values, scales), "int8")
    kernel = partial(_kernel, shape=shape)
    return tiling.multiplied(kernel, x, *arrays, name=f"product_{name}", stages=3, interpret=interpret)


def _kernel(x_ref: Any, values_ref: Any, *refs: Any, shape: _Shape) -> None:
    *scales_refs, out_ref = refs
    tiling = shape.tiling
    row_tile, tile, split = (pl.program_id(axis) for axis in range(3))

    def tile_at(rows: int, row: Any, columns: int, column: Any) -> tuple[jax.Array, jax.Array]:
        first, second = (lax.broadcasted_iota(jnp.int32, (rows, columns), axis) for axis in range(2))
        return row + first, column + second

    def step(number: jax.Array, total: jax.Array) -> jax.Array:
        m, k = tile_at(tiling.tile, row_tile * tiling.tile, _WIDTH, number * _WIDTH)
        x = triton.load(x_ref.at[m, k], mask=(m < tiling.rows) & (k < shape.columns), other=0)
        n, k = tile_at(tiling.outputs, tile * tiling.outputs, _WIDTH, number * _WIDTH)
        exists = None
        if tiling.all_outputs % tiling.outputs or shape.columns % _WIDTH:
            exists = (n < tiling.all_outputs) & (k < shape.columns)
        weights = triton.load(values_ref.at[n, k], mask=exists, other=None if exists is None else 0)
        if shape.by_assembly:
            weights = _converted_by_assembly(weights, x.dtype)
        return total + tile_dot(x, weights.astype(x.dtype))

    start = split * tiling.part
    stop = jnp.minimum(start + tiling.part, tiling.steps)
    total = lax.fori_loop(start, stop, step, jnp.zeros((tiling.tile, tiling.outputs), jnp.float32))
    m, n = tile_at(tiling.tile, row_tile * tiling.tile, tiling.outputs, tile * tiling.outputs)
    exists = (m < tiling.rows) & (n < tiling.all_outputs)
    for scales_ref in scales_refs:
        total = total * triton.load(scales_ref.at[n], mask=exists, other=0)
    triton.store(out_ref.at[split, m, n], total, mask=exists)


def _converted_by_assembly(integers: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """int8 as floats of 16 bits, exactly, four at a time: compilers would take more instructions."""
    (floats,) = triton.elementwise_inline_asm(
        assembly(dtype),
        args=[integers],
        constraints="=r,=r,r",
        pack=4,
        result_shape_dtypes=[jax.ShapeDtypeStruct(integers.shape, dtype)],
    )
    return floats


def assembly(dtype: jnp.dtype) -> str:
    """PTX that converts the four int8 of word $2 to floats of 16 bits in $0 and $1.

    An integer plus 128 is set into the bits of 2^15 as a float, where the lowest bit of a byte is worth 1; then
    2^15 + 128 is taken away.
    """
    lines = ["xor.b32 t, $2, 0x80808080;"]
    for i in range(4):
        lines.append(f"prmt.b32 f{i}, t, 0x47000000, 0x74{i}4;")
        lines.append(f"add.rn.f32 f{i}, f{i}, 0fC7008000;")
    kind = {"bfloat16": "bf16x2", "float16": "f16x2"}[dtype.name]
    lines += [f"cvt.rn.{kind}.f32 $0, f1, f0;", f"cvt.rn.{kind}.f32 $1, f3, f2;"]
    return "{ .reg .b32 t, f0, f1, f2, f3; " + " ".join(lines) + " }"


def kernel_works(placement: Placement, dtype: jax.typing.DTypeLike) -> bool:
    """Whether products run by the kernel: one GPU holds the model, activations have 16 bits, and on the GPU the kernel
    gives what a dot gives. Compiles and runs small products.

    Args:
      dtype: of activations.
    """
    return placement.is_one_gpu and jnp.dtype(dtype).itemsize == 2 and _agrees(placement, jnp.dtype(dtype))


_CHECKED = (
    # Tiles of 32 outputs, columns in parts, ragged edges; tiles of 16, 32 and 128 rows.
    (200, 9000, 5),
    (256, 8192, 40),
    (256, 1024, 200),
    # Tiles of 64 outputs.
    (OUTPUTS * (FEW_TILES + 1), 384, 7),
)
"""Outputs, columns and rows of the products that are checked: each kind of tile."""


@lru_cache(maxsize=8)
def _agrees(placement: Placement, dtype: jnp.dtype) -> bool:
    def plain(x: jax.Array, values: jax.Array, scales: jax.Array | None) -> jax.Array:
        y = jnp.matmul(x, values.T.astype(x.dtype), preferred_element_type=jnp.float32)
        return y if scales is None else y * scales

    def check(outputs: int, columns: int, rows: int) -> bool:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((rows, columns)).astype(dtype)
        integers = rng.integers(-128, 128, (outputs, columns), dtype=np.int8)
        scales = rng.uniform(0.5, 2, outputs).astype(np.float32)
        forms = {"plain matrices": (x, integers.astype(dtype), None), "int8": (x, integers, scales)}
        return all(
            agrees(f"products with {name}", product, plain, arguments, placement=placement, dtype=dtype)
            for name, arguments in forms.items()
        )

    return all(check(*sizes) for sizes in _CHECKED)
