"""Packed rows taken apart into the integers and scales that their values are made of, exactly.

    value = scale * code - minimum,    scale = super_scale * scale_code,    minimum = super_minimum * minimum_code

with one scale for each group of 16 or 32 values and, for the types with blocks of 256, one super-scale for each block.
All fields are whole numbers or float16 as they stand in the file, so that a device may hold them in an order of its own
and lose nothing. `unpack` is the way to values; this is the way to other layouts.

Source: the block structs of ggml-common.h in llama.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from conversion.dequantize.fields import bits, fold, nibbles, split_blocks
from conversion.dequantize.small_blocks import IQ4_VALUES, five_bits
from conversion.weights.ggml_types import GGMLType


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the fields of a type are. Static."""

    group: int
    """Values that share a scale."""
    planes: tuple[int, ...]
    """Numbers of bits that the codes can be cut into so that whole bytes are filled, lowest bits first."""
    zero: int = 0
    """What is subtracted from codes."""
    table: tuple[int, ...] = ()
    """The values that codes stand for; empty: the codes, less `zero`."""
    has_minima: bool = False
    is_super: bool = False
    """Whether scales are whole numbers, times a super-scale for each block."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["codes", "scales", "super_scales", "minima", "super_minima"],
    meta_fields=[],
)
@dataclass(frozen=True, kw_only=True)
class Parts:
    """The fields of packed rows."""

    codes: jax.Array
    """uint8 [..., columns]"""
    scales: jax.Array
    """[..., columns / group]: float16, or of types with super-scales int8 or uint8."""
    super_scales: jax.Array | None = None
    """float16 [..., columns / 256]"""
    minima: jax.Array | None = None
    """As `scales`."""
    super_minima: jax.Array | None = None
    """As `super_scales`."""


_Fields = Callable[[jax.Array], Parts]


def _half(block: jax.Array, offset: int) -> jax.Array:
    """The float16 at a byte offset of each block: [..., blocks, block_bytes] -> [..., blocks]"""
    return jax.lax.bitcast_convert_type(block[..., offset : offset + 2], jnp.float16)


def _small(codes: jax.Array, block: jax.Array, *, minimum: bool = False) -> Parts:
    """Of a type with blocks of 32: codes [..., blocks, 32]. Its files hold what is added, not what is subtracted."""
    return Parts(codes=codes, scales=_half(block, 0), minima=-_half(block, 2) if minimum else None)


def _k_scales(block: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Six-bit scales and minima of Q4_K and Q5_K: two uint8 [..., blocks, 8]."""
    scales, minima, rest = (block[..., start : start + 4] for start in (4, 8, 12))
    second = ((rest & 15) | ((scales >> 2) & 48), (rest >> 4) | ((minima >> 2) & 48))
    return (
        jnp.concatenate([scales & 63, second[0]], axis=-1),
        jnp.concatenate([minima & 63, second[1]], axis=-1),
    )


def _k(codes: jax.Array, block: jax.Array) -> Parts:
    scales, minima = _k_scales(block)
    return Parts(codes=codes, scales=scales, super_scales=_half(block, 0), minima=minima, super_minima=_half(block, 2))


def _q2_k(block: jax.Array) -> Parts:
    return Parts(
        codes=bits(fold(block[..., 16:80], 2, 1, 32), 2, 4, 1),
        scales=block[..., :16] & 15,
        super_scales=_half(block, 80),
        minima=block[..., :16] >> 4,
        super_minima=_half(block, 82),
    )


def _q3_k(block: jax.Array) -> Parts:
    low = bits(fold(block[..., 96:104], 1, 8), 4, 2, 1)
    high = bits(fold(block[..., 104:108], 1, 4), 2, 4, 1).reshape(low.shape)
    codes = bits(fold(block[..., 32:96], 2, 1, 32), 2, 4, 1)
    third = bits(fold(block[..., :32], 1, 32), 1, 8, 1).reshape(codes.shape)
    scales = (low | (high << 4)).astype(jnp.int8) - jnp.int8(32)
    return Parts(codes=codes | (third << 2), scales=scales, super_scales=_half(block, 108))


def _q4_k(block: jax.Array) -> Parts:
    return _k(bits(fold(block[..., 16:], 4, 1, 32), 4, 2, 1), block)


def _q5_k(block: jax.Array) -> Parts:
    low = bits(fold(block[..., 48:], 4, 1, 32), 4, 2, 1)
    fifth = bits(fold(block[..., 16:48], 1, 32), 1, 8, 1).reshape(low.shape)
    return _k(low | (fifth << 4), block)


def _q6_k(block: jax.Array) -> Parts:
    low = bits(fold(block[..., :128], 2, 1, 64), 4, 2, 1)
    high = bits(fold(block[..., 128:192], 2, 1, 32), 2, 4, 1).reshape(low.shape)
    scales = jax.lax.bitcast_convert_type(block[..., 192:208], jnp.int8)
    return Parts(codes=low | (high << 4), scales=scales, super_scales=_half(block, 208))


def _iq4_xs(block: jax.Array) -> Parts:
    low = bits(fold(block[..., 4:8], 4, 1), 4, 2)
    high = bits(fold(block[..., 2:4], 2, 1), 2, 4).reshape(low.shape)
    scales = (low | (high << 4)).astype(jnp.int8) - jnp.int8(32)
    return Parts(codes=nibbles(fold(block[..., 8:], 8, 16)), scales=scales, super_scales=_half(block, 0))


_TYPES: dict[str, tuple[Layout, _Fields]] = {
    "Q4_0": (Layout(group=32, planes=(4,), zero=8), lambda b: _small(nibbles(b[..., 2:]), b)),
    "Q4_1": (Layout(group=32, planes=(4,), has_minima=True), lambda b: _small(nibbles(b[..., 4:]), b, minimum=True)),
    "Q5_0": (Layout(group=32, planes=(4, 1), zero=16), lambda b: _small(five_bits(b, 2), b)),
    "Q5_1": (
        Layout(group=32, planes=(4, 1), has_minima=True),
        lambda b: _small(five_bits(b, 4), b, minimum=True),
    ),
    "Q8_0": (Layout(group=32, planes=(8,), zero=128), lambda b: _small(b[..., 2:] ^ jnp.uint8(128), b)),
    "IQ4_NL": (Layout(group=32, planes=(4,), table=IQ4_VALUES), lambda b: _small(nibbles(b[..., 2:]), b)),
    "Q2_K": (Layout(group=16, planes=(2,), has_minima=True, is_super=True), _q2_k),
    "Q3_K": (Layout(group=16, planes=(2, 1), zero=4, is_super=True), _q3_k),
    "Q4_K": (Layout(group=32, planes=(4,), has_minima=True, is_super=True), _q4_k),
    "Q5_K": (Layout(group=32, planes=(4, 1), has_minima=True, is_super=True), _q5_k),
    "Q6_K": (Layout(group=16, planes=(4, 2), zero=32, is_super=True), _q6_k),
    "IQ4_XS": (Layout(group=32, planes=(4,), table=IQ4_VALUES, is_super=True), _iq4_xs),
}

DIVISIBLE = frozenset(_TYPES)
"""Names of the types that `parts_of` takes."""


def layout_of(kind: GGMLType) -> Layout:
    """Raises:
    KeyError: the type is not in `DIVISIBLE`.
    """
    return _TYPES[kind.name][0]


def parts_of(raw: jax.Array, kind: GGMLType) -> Parts:
    """Take packed rows apart: uint8 [..., row_bytes]. Pure and traceable.

    Raises:
      KeyError: the type is not in `DIVISIBLE`.
    """
    layout, fields = _TYPES[kind.name]
    blocks = split_blocks(raw, kind.block_bytes)
    found = fields(blocks)
    rows, columns = raw.shape[:-1], blocks.shape[-2] * kind.block_size

    def flat(x: jax.Array | None, count: int) -> jax.Array | None:
        return None if x is None else x.reshape(*rows, count)

    codes, scales = flat(found.codes.astype(jnp.uint8), columns), flat(found.scales, columns // layout.group)
    assert codes is not None
    assert scales is not None
    return Parts(
        codes=codes,
        scales=scales,
        super_scales=flat(found.super_scales, columns // kind.block_size),
        minima=flat(found.minima, columns // layout.group),
        super_minima=flat(found.super_minima, columns // kind.block_size),
    )
