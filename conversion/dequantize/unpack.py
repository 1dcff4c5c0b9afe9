"""Packed rows to values, inside a jitted program: plain elementwise operations, nothing placed, nothing called on the
host."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from conversion.dequantize import fp4_blocks, grid_blocks, small_blocks, super_blocks
from conversion.dequantize.fields import RUN, split_blocks
from conversion.weights.ggml_types import GGMLType

_Unpack = Callable[[jax.Array], jax.Array]

_COMMON: dict[str, _Unpack] = {
    "Q4_0": small_blocks.q4_0,
    "Q4_1": small_blocks.q4_1,
    "Q5_0": small_blocks.q5_0,
    "Q5_1": small_blocks.q5_1,
    "Q8_0": small_blocks.q8_0,
    "IQ4_NL": small_blocks.iq4_nl,
    "Q2_K": super_blocks.q2_k,
    "Q3_K": super_blocks.q3_k,
    "Q4_K": super_blocks.q4_k,
    "Q5_K": super_blocks.q5_k,
    "Q6_K": super_blocks.q6_k,
    "IQ4_XS": super_blocks.iq4_xs,
    "MXFP4": fp4_blocks.mxfp4,
}
_RARE: dict[str, _Unpack] = {
    "TQ1_0": super_blocks.tq1_0,
    "TQ2_0": super_blocks.tq2_0,
    "IQ1_S": grid_blocks.iq1_s,
    "IQ1_M": grid_blocks.iq1_m,
    "IQ2_XXS": grid_blocks.iq2_xxs,
    "IQ2_XS": grid_blocks.iq2_xs,
    "IQ2_S": grid_blocks.iq2_s,
    "IQ3_XXS": grid_blocks.iq3_xxs,
    "IQ3_S": grid_blocks.iq3_s,
    "NVFP4": fp4_blocks.nvfp4,
}
_BLOCKS = _COMMON | _RARE
_PLAIN = frozenset({"F32", "F16", "BF16", "I8", "I16", "I32"})

PACKED = frozenset(_BLOCKS)
"""Names of the block types that `unpack` and `unpack_runs` take: all of them."""
UNPACKABLE = frozenset(_COMMON) | _PLAIN
"""Names of the types that may stay packed on the device: common, and cheap to unpack again in each product."""


def unpack(raw: jax.Array, kind: GGMLType, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """The values of packed rows: uint8 [..., row_bytes] -> dtype [..., columns].

    They are computed in float32, with the bits of `gguf.quants.dequantize`, and rounded to `dtype` once. Pure and
    traceable.

    Raises:
      ValueError: the type is F64 or I64, the bytes are not uint8, or a row is not a whole number of blocks.
    """
    _check(raw, kind, PACKED | _PLAIN, "unpack")
    shape = (*raw.shape[:-1], raw.shape[-1] // kind.block_bytes * kind.block_size)
    if kind.dtype is None:
        # A CPU must not fuse the final reshape into the loop: over whole rows the loop would no longer be vector code.
        # Elsewhere the next operations may fuse with the unpacking.
        runs = unpack_runs(raw, kind).astype(dtype)
        return jax.lax.platform_dependent(runs, cpu=jax.lax.optimization_barrier, default=lambda runs: runs).reshape(
            shape
        )
    blocks = raw if kind.dtype.itemsize == 1 else split_blocks(raw, kind.block_bytes)
    return jax.lax.bitcast_convert_type(blocks, kind.dtype).astype(dtype)


def unpack_runs(raw: jax.Array, kind: GGMLType) -> jax.Array:
    """As `unpack`, for use inside a larger fusion: uint8 [..., row_bytes] -> float32 [..., columns / 32, 32].

    All on one loop over runs of 32, with no barrier behind it: a sum over the last two axes fuses with the unpacking.

    Raises:
      ValueError: the type is not in `PACKED`, the bytes are not uint8, or a row is not a whole number of blocks.
    """
    _check(raw, kind, PACKED, "unpack_runs")
    values = _BLOCKS[kind.name](split_blocks(raw, kind.block_bytes))
    return values.reshape(*raw.shape[:-1], raw.shape[-1] // kind.block_bytes * kind.block_size // RUN, RUN)


def _check(raw: jax.Array, kind: GGMLType, known: frozenset[str], caller: str) -> None:
    if kind.name not in known:
        raise ValueError(f"{caller} does not take {kind.name} but {', '.join(sorted(known))}")
    if raw.dtype != jnp.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.block_bytes:
        raise ValueError(
            f"packed rows of {kind.name} must be uint8 [..., n * {kind.block_bytes}], not {raw.dtype} {list(raw.shape)}"
        )
