"""Products and sums whose bits do not depend on how many rows are computed together.

XLA's CPU backend chooses between several kernels by the shape of a product, and they differ in the last bit. From two
rows on it makes the same choice for every number of rows, if the weight is large enough and has no ragged edge. So
matrices are *stored* in such shapes (`storable_shape`, `mistral_jax.quant.array.padded`), and `dot` refuses any other
while tracing. `python -m tests.dot_bits` prints where the bits of small and ragged shapes differ on this machine.

The rule applies on every platform: programs have the same shapes everywhere, so tests on one platform cover all.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from conversion.weights.stored_shapes import storable_shape


def dot(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x` [..., in] times `weight` [out, in] transposed: float32 [..., out] for all types of the two.

    A row of the result has the same bits for every number of rows. A single row is computed twice: XLA's CPU backend
    computes a single bfloat16 row from a float32 copy of the whole weight, ten times slower, and with other bits than
    the same row among others.

    Raises:
      ValueError: while tracing, if `weight` has no `storable_shape`.
    """
    return _product(x, weight, batch=0)


def batched_dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x` [..., rows, in] times `y` [..., out, in] transposed, batched: float32 [..., rows, out].

    A row has the same bits for every number of rows and for every batch size.

    Raises:
      ValueError: see `dot`.
    """
    return _product(x, y, batch=y.ndim - 2)


def _product(x: jax.Array, weight: jax.Array, *, batch: int) -> jax.Array:
    *_, outer, inner = weight.shape
    if storable_shape(outer, inner) != (outer, inner):
        raise ValueError(
            f"a product with a matrix of {outer} x {inner} has bits that depend on the number of rows; "
            f"store it with zeros around it, as {' x '.join(map(str, storable_shape(outer, inner)))} "
            "(mistral_jax.quant.array.padded)"
        )
    rows = x.shape[batch:-1]
    alone = all(size == 1 for size in rows)
    if alone:
        # Without the barrier XLA notices that one of the two is not needed.
        x = x.reshape(*x.shape[:batch], 1, inner)
        x = lax.optimization_barrier(jnp.concatenate([x, x], axis=-2))
    pairs = tuple(range(batch))
    axes = (((x.ndim - 1,), (weight.ndim - 1,)), (pairs, pairs))
    y = lax.dot_general(x, weight, axes, precision=precision_of(x), preferred_element_type=jnp.float32)
    return y[..., 0, :].reshape(*x.shape[:batch], *rows, outer) if alone else y


def precision_of(x: jax.Array) -> lax.Precision:
    """Full precision for float32, which GPUs round to 19 bits (TF32) by default; smaller types lose nothing."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT


def rounded_product(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x * y`, rounded before anything is added to it.

    Compilers may compute a product and a sum with one rounding, and whether they do depends on the shapes; so would the
    last bit. The selection between the two, which takes the product of all numbers, keeps them apart.
    """
    return jnp.where(jnp.isnan(y), jnp.nan, x * y)


_SUMMED_AT_ONCE = 4096
"""Longest row that is summed by one product; longer rows are summed in parts, and then the sums of the parts."""


@partial(jax.jit, static_argnames="alone", inline=True)
def row_sum(x: jax.Array, *, alone: bool = False) -> jax.Array:
    """Sum over the last axis: [..., n] -> float32 [...], with bits that do not depend on the number of rows.

    From 4096 elements of the whole array on, XLA's CPU backend sums a row in another order, and may compute the
    exponentials before it with another library. So on CPUs a sum is a `dot` with ones.

    Args:
      alone: static; on other devices, do not fuse the sum with what computes `x`: it is the same kernel then, with the
        same order of terms, in programs that compute `x` in different company.
    """

    def as_dot(x: jax.Array) -> jax.Array:
        n = x.shape[-1]
        if n > _SUMMED_AT_ONCE:
            parts = -(-n // _SUMMED_AT_ONCE)
            padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, parts * _SUMMED_AT_ONCE - n)])
            return as_dot(as_dot(padded.reshape(*x.shape[:-1], parts, _SUMMED_AT_ONCE)))
        shape = storable_shape(1, n)
        if shape[1] != n:
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, shape[1] - n)])
        # The barrier: XLA may store the transpose of a constant, and products with that have other bits for few rows.
        return dot(x, lax.optimization_barrier(jnp.ones(shape, x.dtype)))[..., 0]

    def elsewhere(x: jax.Array) -> jax.Array:
        return jnp.sum(lax.optimization_barrier(x) if alone else x, axis=-1, dtype=jnp.float32)

    return lax.platform_dependent(x, cpu=as_dot, default=elsewhere)
