"""The scales of blocks of 256 values: a float16 unit for all, and small integer scales for runs of 16 or 32 values.

The search minimises the squared error of the unpacked block. (Weighting large values more, as llama.cpp does, raises
both that error and, measured on the bundled model, the divergence of its predictions.) Three steps:

1. Each run by itself: for a dozen or more candidate steps between codes, round the values, find the best scale (and
   offset) for those codes by least squares, and keep the candidate with the least error.
2. The largest scale of the block decides the unit. The scales become integers of it, and since each change rounds the
   values differently, the neighbours of the nearest integers are tried as well, for scale and offset together.
3. With codes and integers fixed, least squares over the whole block gives the best unit. Step 2 is repeated with it,
   and the result is kept where it has less error.

Several sums over a run are computed in one reduction, which XLA compiles to one loop, so that candidate codes are never
stored. Blocks are scaled to magnitudes near one by a power of two, which is exact, so that no square overflows or
underflows. Below, `x`, scales, offsets and units are of such blocks; a `shift` per block undoes the scaling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from conversion.quantize.fields import magnitude, reciprocal

_AT_ONCE = 3
"""Candidates in one pass over the values. With more, the accumulators no longer fit the registers of a CPU."""
_FLAT = 1e-20
"""Runs that vary by less, in blocks of magnitude one, are constant."""

_OFFSET_STEPS = np.linspace(0.85, 1.1, 18, dtype=np.float32)
_SIGNED_STEPS = np.linspace(0.75, 1.1, 12, dtype=np.float32)
"""Candidates: codes per unit, as a fraction of the one that just covers the values of a run."""
_NEIGHBOURS = np.array([0, -1, 1], np.float32)
"""Integers that are tried, from the nearest one."""

Nearest = Callable[[jax.Array], jax.Array]
"""Rounds values, in units of the scale, to what a code can stand for."""


class OffsetBlocks(NamedTuple):
    """Blocks of values `unit * scale * code - offset_unit * offset`."""

    unit: jax.Array
    """float16 [blocks]"""
    offset_unit: jax.Array
    """float16 [blocks]"""
    scale: jax.Array
    """uint8 [blocks, runs]"""
    offset: jax.Array
    """uint8 [blocks, runs]"""
    code: jax.Array
    """uint8 [blocks, runs, run]"""


class SignedBlocks(NamedTuple):
    """Blocks of values `unit * scale * level`."""

    unit: jax.Array
    """float16 [blocks]"""
    scale: jax.Array
    """int8 [blocks, runs]"""
    level: jax.Array
    """float32 [blocks, runs, run]: what the codes stand for."""


def offset_blocks(x: jax.Array, *, run: int, most: int, top: int) -> OffsetBlocks:
    """Quantise float32 [blocks, 256] to codes 0..most, with scales and offsets 0..top for every `run` values."""
    shift, x = _near_one(x)
    x = x.reshape(len(x), -1, run)
    scale, offset = _fit_offset(x, most)
    units = _unit(scale.max(1), shift, top), _unit(offset.max(1), shift, top)
    first = _nearest_pairs(x, scale, offset, units, most, top)

    scale, offset = first.real()
    again = _nearest_pairs(x, scale, offset, _best_units(x, first, shift, most), most, top)
    best = _Pairs(*_keep(again.error.sum(1) < first.error.sum(1), again, first))
    code = _offset_codes(x, *best.real(), most)
    integers = (best.scale.astype(jnp.uint8), best.offset.astype(jnp.uint8), code.astype(jnp.uint8))
    return OffsetBlocks(_half(best.unit, shift), _half(best.offset_unit, shift), *lax.optimization_barrier(integers))


def signed_blocks(x: jax.Array, *, run: int, nearest: Nearest, least: int, top: int) -> SignedBlocks:
    """Quantise float32 [blocks, 256] to levels from `least` up, with scales -top..top - 1 for every `run` values.

    Args:
      least: the level of the greatest magnitude, below zero.
    """
    shift, x = _near_one(x)
    x = x.reshape(len(x), -1, run)
    scale = fit_signed(x, nearest, least)
    low, high = scale.min(1), scale.max(1)
    # The integer of the greatest magnitude is -top, so the unit has the other sign.
    unit = jnp.where(high > -low, -1, 1) * _unit(jnp.maximum(high, -low), shift, top)
    integer, error = _nearest_scales(x, scale, unit, nearest, top)

    scale = unit[:, None] * integer
    level = lax.optimization_barrier(_levels(x, scale, nearest))
    squares, products = _sums(level * level, level * x)
    new_unit = (integer * products).sum(1) * reciprocal((integer * integer * squares).sum(1))
    new_unit = _half(new_unit, shift).astype(jnp.float32) / shift
    new_integer, new_error = _nearest_scales(x, scale, new_unit, nearest, top)
    unit, integer = _keep(new_error.sum(1) < error.sum(1), (new_unit, new_integer), (unit, integer))
    level = _levels(x, unit[:, None] * integer, nearest)
    return SignedBlocks(_half(unit, shift), integer.astype(jnp.int8), level)


def fit_signed(x: jax.Array, nearest: Nearest, least: int) -> jax.Array:
    """The scale of each run by itself that minimises the error of `scale * level`: [..., run] -> [...]."""
    low, high = x.min(-1), x.max(-1)
    farthest = jnp.where(high > -low, high, low)
    steps = least * jnp.where(jnp.abs(farthest) > _FLAT, reciprocal(farthest), 0)

    def body(best: tuple[jax.Array, ...], shares: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        terms: list[jax.Array] = []
        for share in shares:
            level = nearest(x * (share * steps)[..., None])
            terms += [level * level, level * x]
        sums = _sums(*terms)
        for ll, lx in zip(sums[::2], sums[1::2], strict=True):
            scale = lx * reciprocal(ll)
            # How much of the squares the levels explain; the rest is the error.
            best = _keep(scale * lx > best[1], (scale, scale * lx), best)
        return best, None

    nothing = jnp.zeros_like(low)
    return lax.scan(body, (nothing, nothing), jnp.asarray(_SIGNED_STEPS).reshape(-1, _AT_ONCE))[0][0]


class _Pairs(NamedTuple):
    """Integer scales and offsets of units."""

    unit: jax.Array
    """[blocks]"""
    offset_unit: jax.Array
    """[blocks]"""
    scale: jax.Array
    """Integers [blocks, runs]"""
    offset: jax.Array
    """Integers [blocks, runs]"""
    error: jax.Array
    """Squared error [blocks, runs]"""

    def real(self) -> tuple[jax.Array, jax.Array]:
        """The resulting scales and offsets."""
        return self.unit[:, None] * self.scale, self.offset_unit[:, None] * self.offset


def _fit_offset(x: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """Scale and offset, neither below zero, of each run by itself: [..., run] -> two of [...]."""
    run = x.shape[-1]
    (total,) = _sums(x)
    low = jnp.minimum(x.min(-1), 0)
    width = x.max(-1) - low
    steps = most * jnp.where(width > _FLAT, reciprocal(width), 0)

    def body(best: tuple[jax.Array, ...], shares: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        terms: list[jax.Array] = []
        for share in shares:
            code = jnp.minimum(jnp.round((x - low[..., None]) * (share * steps)[..., None]), most)
            terms += [code, code * code, code * x]
        sums = _sums(*terms)
        for c, cc, cx in zip(sums[::3], sums[1::3], sums[2::3], strict=True):
            determinant = run * cc - c * c
            inverse = reciprocal(determinant)
            minimum = (cc * total - c * cx) * inverse
            # An offset below zero cannot be written, and equal codes need none: then the scale is a simple quotient.
            alone = (minimum > 0) | (determinant <= 0)
            scale = jnp.where(alone, cx * reciprocal(cc), (run * cx - total * c) * inverse)
            minimum = jnp.where(alone, 0, minimum)
            # The squared error, less the squares of the values, which are the same for all.
            error = scale * (scale * cc + 2 * (minimum * c - cx)) + minimum * (run * minimum - 2 * total)
            best = _keep((cc > 0) & (error < best[2]), (scale, -minimum, error), best)
        return best, None

    start = (jnp.zeros_like(low), -low, jnp.full_like(low, jnp.inf))
    scale, offset, _ = lax.scan(body, start, jnp.asarray(_OFFSET_STEPS).reshape(-1, _AT_ONCE))[0]
    return scale, offset


def _nearest_pairs(
    x: jax.Array, scale: jax.Array, offset: jax.Array, units: tuple[jax.Array, jax.Array], most: int, top: int
) -> _Pairs:
    """The integers near these scales and offsets [blocks, runs] that give the least squared error."""
    unit, offset_unit = (unit[:, None] for unit in units)
    middle = jnp.clip(jnp.round(scale * reciprocal(unit)), 0, top)
    offset_middle = jnp.clip(jnp.round(offset * reciprocal(offset_unit)), 0, top)

    def body(best: tuple[jax.Array, ...], step: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        integer = jnp.clip(middle + step, 0, top)
        scale = unit * integer
        offset_integers = [jnp.clip(offset_middle + j, 0, top) for j in _NEIGHBOURS]
        errors: list[jax.Array] = []
        for offset_integer in offset_integers:
            offset = offset_unit * offset_integer
            code = _offset_codes(x, scale, offset, most)
            errors.append((code * scale[..., None] - offset[..., None] - x) ** 2)
        for offset_integer, error in zip(offset_integers, _sums(*errors), strict=True):
            best = _keep(error < best[2], (integer, offset_integer, error), best)
        return best, None

    start = (middle, offset_middle, jnp.full_like(middle, jnp.inf))
    return _Pairs(*units, *lax.scan(body, start, jnp.asarray(_NEIGHBOURS))[0])


def _best_units(x: jax.Array, pairs: _Pairs, shift: jax.Array, most: int) -> tuple[jax.Array, jax.Array]:
    """The units with the least squared error for the integers and codes of `pairs`."""
    code = _offset_codes(x, *pairs.real(), most)
    total, c, cc, cx = _sums(x, code, code * code, code * x)
    scale, offset = pairs.scale, pairs.offset
    # The block is a combination of two vectors, scale * code and offset.
    uu, uv, vv = ((a).sum(1) for a in (scale * scale * cc, scale * offset * c, offset * offset * x.shape[-1]))
    ux, vx = (scale * cx).sum(1), (offset * total).sum(1)
    determinant = uu * vv - uv * uv
    inverse = reciprocal(determinant)
    both = determinant > 1e-4 * uu * vv
    unit = jnp.where(both, (ux * vv - vx * uv) * inverse, ux * reciprocal(uu))
    offset_unit = jnp.where(both, (ux * uv - vx * uu) * inverse, pairs.offset_unit)
    unit, offset_unit = (
        _half(jnp.maximum(value, 0), shift).astype(jnp.float32) / shift for value in (unit, offset_unit)
    )
    return unit, offset_unit


def _nearest_scales(
    x: jax.Array, scale: jax.Array, unit: jax.Array, nearest: Nearest, top: int
) -> tuple[jax.Array, jax.Array]:
    """Integers near `scale / unit` [blocks, runs] with the least squared error, and that error."""
    unit = unit[:, None]
    middle = jnp.round(scale * reciprocal(unit))

    def body(best: tuple[jax.Array, ...], step: jax.Array) -> tuple[tuple[jax.Array, ...], None]:
        integer = jnp.clip(middle + step, -top, top - 1)
        level = _levels(x, unit * integer, nearest)
        (error,) = _sums(((unit * integer)[..., None] * level - x) ** 2)
        return _keep(error < best[1], (integer, error), best), None

    start = (middle, jnp.full_like(middle, jnp.inf))
    integer, error = lax.scan(body, start, jnp.asarray(_NEIGHBOURS))[0]
    return integer, error


def _offset_codes(x: jax.Array, scale: jax.Array, offset: jax.Array, most: int) -> jax.Array:
    return jnp.clip(jnp.round((x + offset[..., None]) * reciprocal(scale)[..., None]), 0, most)


def _levels(x: jax.Array, scale: jax.Array, nearest: Nearest) -> jax.Array:
    return nearest(x * reciprocal(scale)[..., None])


def _near_one(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The power of two just below the largest magnitude of each block, and the blocks divided by it."""
    exponent = lax.bitcast_convert_type(magnitude(x), jnp.uint32) & jnp.uint32(0xFF << 23)
    exponent = jnp.clip(exponent, jnp.uint32(1 << 23), jnp.uint32(253 << 23))
    shift = lax.bitcast_convert_type(exponent, jnp.float32)
    return shift, x * lax.bitcast_convert_type(jnp.uint32(254 << 23) - exponent, jnp.float32)[:, None]


def _unit(largest: jax.Array, shift: jax.Array, top: int) -> jax.Array:
    """The unit of which the largest scale is about `top`: [blocks] -> [blocks].

    Units of common weights are subnormal in float16, hence coarse. One that was rounded down so far that the largest
    scale exceeds its integers is replaced by the next.
    """
    half = _half(largest / top, shift)
    short = largest * shift > half.astype(jnp.float32) * (top + 0.5)
    half = lax.bitcast_convert_type(lax.bitcast_convert_type(half, jnp.uint16) + short.astype(jnp.uint16), jnp.float16)
    return half.astype(jnp.float32) / shift


def _half(unit: jax.Array, shift: jax.Array) -> jax.Array:
    """Units as blocks have them, float16, in the magnitudes that the block came with."""
    return (unit * shift).astype(jnp.float16)


def _keep(better: jax.Array, new: tuple[jax.Array, ...], old: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
    """Pick per block (or per run, where `better` is per run)."""
    return tuple(
        jnp.where(better if a.ndim == better.ndim else better[:, None], a, b) for a, b in zip(new, old, strict=True)
    )


def _sums(*terms: jax.Array) -> tuple[jax.Array, ...]:
    """The sums of several arrays over the last axis, in one pass: [..., n] each -> [...] each."""
    zeros = (jnp.float32(0),) * len(terms)

    def add(a: tuple[jax.Array, ...], b: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(x + y for x, y in zip(a, b, strict=True))

    return tuple(lax.reduce(terms, zeros, add, (terms[0].ndim - 1,)))
