"""Dots and sums whose bits do not depend on how many rows are computed together."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def dot(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x` [..., in] times `weight` [out, in] transposed: float32 [..., out], whatever the types of the two.

    Give it at least two rows: XLA's CPU backend computes a single bfloat16 row by way of a float32 copy of the whole weight, ten
    times slower, and with other bits than the same row among others.
    """
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, axes, precision=precision_of(x), preferred_element_type=jnp.float32)


def precision_of(x: jax.Array) -> lax.Precision:
    """Full precision for float32, which GPUs would round to 19 bits (TF32) by default; smaller types have nothing to lose."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT


@partial(jax.jit, inline=True)
def row_sum(x: jax.Array) -> jax.Array:
    """Sum over the last axis: [..., n] -> float32 [...], with bits that do not depend on how many rows there are.

    XLA's CPU backend adds up a row in another order, and may take the exponentials before it from another library, once the
    whole array has 4096 elements. Its dots are constant from two rows on; so there a sum is a dot with ones (two columns,
    since one column is again a case of its own).
    """

    def as_dot(x: jax.Array) -> jax.Array:
        return dot(x, jnp.ones((2, x.shape[-1]), x.dtype))[..., 0]

    return lax.platform_dependent(x, cpu=as_dot, default=lambda x: jnp.sum(x, axis=-1, dtype=jnp.float32))
