"""The small modules: linear, embedding, normalisation. All weights are stored `[out, in]`, as checkpoints have them.

`matmul` is the one place where a weight meets an activation; weights that are not plain arrays will be told apart there.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax


def matmul(x: jax.Array, weight: jax.Array) -> jax.Array:
    """`x` [..., in] times `weight` [out, in] transposed: float32 [..., out], whatever the types of the two.

    Give it at least two rows: XLA's CPU backend computes a single bfloat16 row by way of a float32 copy of the whole weight, ten
    times slower, and with other bits than the same row among others.
    """
    axes = (((x.ndim - 1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, axes, precision=precision_of(x), preferred_element_type=jnp.float32)


def precision_of(x: jax.Array) -> lax.Precision:
    """Full precision for float32, which GPUs would round to 19 bits (TF32) by default; smaller types have nothing to lose."""
    return lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT


def row_sum(x: jax.Array) -> jax.Array:
    """Sum over the last axis: [..., n] -> float32 [...], with bits that do not depend on how many rows there are.

    XLA's CPU backend adds up a row in another order, and may take the exponentials before it from another library, once the
    whole array has 4096 elements. Its dots are constant from two rows on; so there a sum is a dot with ones (two columns,
    since one column is again a case of its own).
    """

    def as_dot(x: jax.Array) -> jax.Array:
        return matmul(x, jnp.ones((2, x.shape[-1]), x.dtype))[..., 0]

    return lax.platform_dependent(x, cpu=as_dot, default=lambda x: jnp.sum(x, axis=-1, dtype=jnp.float32))


class Linear(nnx.Module):
    """`y = x Wᵀ + b`, float32 whatever the types of `x` and `W`: the caller rounds once, after what follows the product.

    With `bias=False` the attribute `bias` is None.
    """

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        scale = in_features**-0.5
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (out_features, in_features), dtype) * scale)
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.weight[...])
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)


class Embedding(nnx.Module):
    """A row of `weight` [V, D] for each token."""

    def __init__(self, vocab_size: int, features: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.weight = nnx.Param(jax.random.normal(rngs.params(), (vocab_size, features), dtype) * features**-0.5)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return self.weight[...][tokens]


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation, computed in float32 (arXiv 1910.07467)."""

    def __init__(self, features: int, *, eps: float, dtype: jax.typing.DTypeLike) -> None:
        self.weight = nnx.Param(jnp.ones((features,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        y = x.astype(jnp.float32)
        y = y * lax.rsqrt(row_sum(jnp.square(y))[..., None] / y.shape[-1] + self.eps)
        return y.astype(x.dtype) * self.weight[...]
