"""Products with matrices of packed blocks as one kernel for NVIDIA GPUs, in Pallas for Triton.

An instance of the kernel computes a tile of outputs for a tile of rows. It reads the packed bytes of `_WIDTH` columns,
unpacks them in registers, rounds the weights to the type of the activations and multiplies on the tensor cores, in
float32 sums: the weights of a matrix that is unpacked first, but for the last bit of a few in types with minima (see
`_weights_by_assembly`).

Columns are added up in their order. Where a matrix has too few outputs to occupy a GPU, they are divided into parts,
whose results are added up afterwards, also in order. The number of parts depends on the matrix alone. On the tensor
cores a row's sum does not depend on the other rows of a tile; so a row's result does not depend on the number of rows.

Axis letters: M rows, N outputs, K columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from conversion.dequantize.parts import Layout, layout_of
from conversion.weights.ggml_types import GGMLType
from mistral_jax.quant.dot import dot, precision_of
from mistral_jax.quant.gpu_kernels import FEW_TILES, Tiling, agrees, run_kernel, tile_dot, triton
from mistral_jax.quant.grouped import ROWS, SPAN, GroupedArray, can_group, grouped
from mistral_jax.quant.placement import Placement

_WIDTH = 128
"""Columns that are unpacked and multiplied at once."""


class _Shape(NamedTuple):
    """Static sizes of one call."""

    tiling: Tiling
    """Its steps are super-blocks."""
    layout: Layout
    columns: int
    """K of the rows; the matrix has a multiple of `SPAN`."""
    by_assembly: bool
    """Whether weights are unpacked by PTX instructions of our own."""


@jax.custom_vjp
def product(x: jax.Array, weight: GroupedArray) -> jax.Array:
    """`x` [M, K] times `weight` [N, K] transposed: float32 [M, N]. Differentiable in `x`."""
    return _by_platform(x, weight)


def _forward(x: jax.Array, weight: GroupedArray) -> tuple[jax.Array, tuple[jax.Array, GroupedArray]]:
    return _by_platform(x, weight), (x, weight)


def _backward(held: tuple[jax.Array, GroupedArray], slope: jax.Array) -> tuple[jax.Array, GroupedArray]:
    x, weight = held
    plain = weight.dequantize(x.dtype)

    def no_slope(leaf: jax.Array) -> Any:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.zeros_like(leaf) if is_float else np.zeros(leaf.shape, jax.dtypes.float0)

    back = jnp.matmul(slope, plain, precision=precision_of(x), preferred_element_type=jnp.float32)
    return back.astype(x.dtype), jax.tree.map(no_slope, weight)


product.defvjp(_forward, _backward)


@partial(jax.jit, inline=True)
def _by_platform(x: jax.Array, weight: GroupedArray) -> jax.Array:
    return run_kernel(_product, x, weight)


def _product(x: jax.Array, weight: GroupedArray, *, interpret: bool) -> jax.Array:
    M, K = x.shape
    tiling = Tiling(M, weight.scales.shape[1], weight.planes[0].shape[0])
    shape = _Shape(tiling, weight.layout, K, by_assembly=not interpret and x.dtype.itemsize == 2)
    arrays = jax.tree.leaves(weight)
    if weight.layout.table:
        arrays.append(jnp.asarray(weight.layout.table, jnp.int8))
    name = f"product_{weight.kind.name.lower()}"
    kernel = partial(_kernel, shape=shape)
    return tiling.multiplied(kernel, x, *arrays, name=name, stages=1, interpret=interpret)[:, : weight.shape[0]]


def _kernel(x_ref: Any, *refs: Any, shape: _Shape) -> None:
    layout, tiling = shape.layout, shape.tiling
    count = len(layout.planes)
    planes, (scales_ref, *others, out_ref) = refs[:count], refs[count:]
    table_ref = others.pop() if layout.table else None
    super_scales_ref = others.pop(0) if layout.is_super else None
    row_tile, tile, split = (pl.program_id(axis) for axis in range(3))
    groups = _WIDTH // layout.group
    sizes, by_group = (tiling.outputs, groups, layout.group), (tiling.outputs, groups, 1)
    n, g, j = (lax.broadcasted_iota(jnp.int32, sizes, axis) for axis in range(3))
    n_of_group, g_of_group = (lax.broadcasted_iota(jnp.int32, by_group, axis) for axis in range(2))
    n, n_of_group = tile * tiling.outputs + n, tile * tiling.outputs + n_of_group
    m, k = (lax.broadcasted_iota(jnp.int32, (tiling.tile, _WIDTH), axis) for axis in range(2))
    m = row_tile * tiling.tile + m

    def scale_of(number: Any, part: int) -> jax.Array:
        """Of span `number`; from the number of spans on, the minima."""
        at = number * (SPAN // layout.group) + part * groups + g_of_group
        scale = triton.load(scales_ref.at[at, n_of_group]).astype(jnp.float32)
        if super_scales_ref is None:
            return scale
        return triton.load(super_scales_ref.at[number, n_of_group]).astype(jnp.float32) * scale

    def span(number: jax.Array, total: jax.Array) -> jax.Array:
        for part in range(SPAN // _WIDTH):
            column = part * _WIDTH + g * layout.group + j
            held: list[_Bits] = []
            for ref, bits in zip(planes, layout.planes, strict=True):
                size = SPAN * bits // 8
                shift = bits * (part * _WIDTH // size) if size >= _WIDTH else bits * lax.div(column, size)
                held.append(_Bits(triton.load(ref.at[number, n, lax.rem(column, size)]), bits, shift))
            scale = scale_of(number, part)
            minimum = scale_of(tiling.steps + number, part) if layout.has_minima else None
            if table_ref is not None:
                weights = triton.load(table_ref.at[_codes(held)]).astype(jnp.float32) * scale
            elif shape.by_assembly:
                weights = _weights_by_assembly(held, scale, minimum, layout, x_ref.dtype)
            else:
                weights = _weights(held, scale, minimum, layout)
            at = number * SPAN + part * _WIDTH + k
            x = triton.load(x_ref.at[m, at], mask=(m < tiling.rows) & (at < shape.columns), other=0)
            total = total + tile_dot(x, weights.astype(x.dtype).reshape(tiling.outputs, _WIDTH))
        return total

    start = split * tiling.part
    stop = jnp.minimum(start + tiling.part, tiling.steps)
    total = lax.fori_loop(start, stop, span, jnp.zeros((tiling.tile, tiling.outputs), jnp.float32))
    m, n = (lax.broadcasted_iota(jnp.int32, total.shape, axis) for axis in range(2))
    m = row_tile * tiling.tile + m
    triton.store(out_ref.at[split, m, tile * tiling.outputs + n], total, mask=m < tiling.rows)


class _Bits(NamedTuple):
    """The bits of a tile of codes that one plane holds."""

    bytes: jax.Array
    """uint8 [outputs, groups, group]"""
    width: int
    """Bits of a code."""
    shift: int | jax.Array
    """Where in the byte: one for all, or int32 of the same shape, the same for four neighbours."""


def _codes(held: list[_Bits]) -> jax.Array:
    """int32 [outputs, groups, group]"""
    codes, place = None, 0
    for plane in held:
        values = plane.bytes.astype(jnp.int32)
        if plane.width < 8:
            values = (values >> plane.shift) & (2**plane.width - 1)
        codes = values if codes is None else codes | (values << place)
        place += plane.width
    assert codes is not None
    return codes


def _weights(held: list[_Bits], scale: jax.Array, minimum: jax.Array | None, layout: Layout) -> jax.Array:
    """float32 [outputs, groups, group], with the bits of the file's blocks unpacked.

    Conversions of integers run at a quarter of the rate of other instructions: a code is set into the low bits of 2^23
    instead, which is subtracted.
    """
    weights = lax.bitcast_convert_type(_codes(held) | 0x4B000000, jnp.float32) - jnp.float32(2**23 + layout.zero)
    weights = weights * scale
    return weights if minimum is None else weights - minimum


def _weights_by_assembly(
    held: list[_Bits], scale: jax.Array, minimum: jax.Array | None, layout: Layout, dtype: jnp.dtype
) -> jax.Array:
    """The same in a type of 16 bits, four codes at a time: compilers would take three times the instructions.

    The code c is set into the bits of a float `base`, so that it reads as `base + c`, and base, zero and minimum are
    taken away in one multiply-add, (base + c) * scale - ((base + zero) * scale + minimum). That rounds at 2^-17 of the
    scale, far below the rounding to `dtype`.
    """
    offset = -(_base(layout) + layout.zero) * scale
    if minimum is not None:
        offset = offset - minimum
    sizes = held[0].bytes.shape
    arguments = [plane.bytes for plane in held]
    arguments += [plane.shift for plane in held if not isinstance(plane.shift, int)]
    arguments += [jnp.broadcast_to(scale, sizes), jnp.broadcast_to(offset, sizes)]
    text, operands = assembly(layout, [plane.shift if isinstance(plane.shift, int) else None for plane in held], dtype)
    (weights,) = triton.elementwise_inline_asm(
        text,
        args=arguments,
        constraints=",".join(["=r"] * 2 + ["r"] * (operands - 2)),
        pack=4,
        result_shape_dtypes=[jax.ShapeDtypeStruct(sizes, dtype)],
    )
    return weights


def _base(layout: Layout) -> float:
    """Codes of eight bits do not fit into the mantissa of a float as small as 128, at the place of a whole byte."""
    return 2.0**15 if max(layout.planes) == 8 else 128.0


def assembly(layout: Layout, shifts: Sequence[int | None], dtype: jnp.dtype) -> tuple[str, int]:
    """PTX that unpacks four neighbouring weights, and the number of its operands.

    Operands: two words of results, two weights each; for each plane a word of four bytes; for each shift that is not
    given (None) four words of it; four scales; four offsets.

    Args:
      shifts: where in its bytes each plane has the codes.
      dtype: of the weights, of 16 bits.
    """
    lines: list[str] = []
    operand, place = 2 + len(shifts), 0
    for i, (shift, bits) in enumerate(zip(shifts, layout.planes, strict=True)):
        by = str(shift)
        if shift is None:
            by, operand = f"${operand}", operand + 4
        lines.append(f"shr.b32 t{i}, ${2 + i}, {by};")
        lines.append(f"and.b32 t{i}, t{i}, 0x{(2**bits - 1) * 0x01010101:08x};")
        if i:
            lines += [f"shl.b32 t{i}, t{i}, {place};", f"or.b32 t0, t0, t{i};"]
        place += bits
    # The bytes of the base's float, of which the code takes the one whose lowest bit is worth 1.
    base = int(np.float32(_base(layout)).view(np.uint32))
    for i in range(4):
        selector = f"0x74{i}4" if max(layout.planes) == 8 else f"0x7{i}44"
        lines.append(f"prmt.b32 f{i}, t0, 0x{base:08x}, {selector};")
        lines.append(f"fma.rn.f32 f{i}, f{i}, ${operand + i}, ${operand + 4 + i};")
    kind = {"bfloat16": "bf16x2", "float16": "f16x2"}[dtype.name]
    lines += [f"cvt.rn.{kind}.f32 $0, f1, f0;", f"cvt.rn.{kind}.f32 $1, f3, f2;"]
    registers = ", ".join([*(f"t{i}" for i in range(len(shifts))), *(f"f{i}" for i in range(4))])
    return "{ .reg .b32 " + registers + "; " + " ".join(lines) + " }", operand + 8


def kernel_works(placement: Placement, dtype: jax.typing.DTypeLike, kinds: Iterable[GGMLType]) -> bool:
    """Whether products with weights of these types run by the kernel: one GPU holds the model, and on it the kernel
    gives what unpacking gives. Compiles and runs small products.

    Args:
      dtype: of activations.
      kinds: other types than `conversion.dequantize.parts.DIVISIBLE` do not count.
    """
    return placement.is_one_gpu and all(_agrees(kind, placement, dtype) for kind in kinds if can_group(kind))


_CHECKED = (
    # Two tiles of outputs, more super-blocks than parts; tiles of 16 and 128 rows.
    (ROWS * 2, 70 * SPAN, 5),
    (ROWS * 2, 70 * SPAN, 200),
    # Tiles of 64 outputs; of 32 rows.
    (ROWS * (FEW_TILES + 1), 3 * SPAN, 40),
)
"""Outputs, columns and rows of the products that are checked: each kind of tile."""


@lru_cache(maxsize=64)
def _agrees(kind: GGMLType, placement: Placement, dtype: jax.typing.DTypeLike) -> bool:
    def plain(x: jax.Array, weight: GroupedArray) -> jax.Array:
        return dot(x, weight.dequantize(x.dtype))

    def check(outputs: int, columns: int, rows: int) -> bool:
        rng = np.random.default_rng(0)
        raw = jax.ShapeDtypeStruct((outputs, kind.row_bytes(columns)), jnp.uint8)
        shapes = jax.eval_shape(partial(grouped, kind=kind), raw)
        weight = jax.tree.map(lambda leaf: _random(rng, leaf, has_supers=layout_of(kind).is_super), shapes)
        x = rng.standard_normal((rows, columns)).astype(np.dtype(dtype))
        return agrees(f"products in {kind.name}", product, plain, (x, weight), placement=placement, dtype=dtype)

    return all(check(*sizes) for sizes in _CHECKED)


def _random(rng: np.random.Generator, leaf: jax.ShapeDtypeStruct, *, has_supers: bool) -> np.ndarray:
    """Values for an array of a matrix in groups: planes have three axes, scales two."""
    if len(leaf.shape) == 3:
        return rng.integers(0, 256, leaf.shape, dtype=np.uint8)
    if leaf.dtype == jnp.float16:
        return rng.uniform(0.001, 0.002, leaf.shape).astype(np.float16) * np.float16(1 if has_supers else 10)
    return rng.integers(-31 if leaf.dtype == jnp.int8 else 0, 32, leaf.shape).astype(leaf.dtype)
