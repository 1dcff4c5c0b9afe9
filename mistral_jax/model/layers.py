"""The basic modules: linear, embedding, normalisation. All weights are stored `[out, in]`, as in checkpoints.

The two operations on weights, products and row lookups, are in `mistral_jax.quant.product`. A weight is a plain array,
padded where products need it, or one of the packed forms of `mistral_jax.quant`, which the loader puts in its place.
"""

from __future__ import annotations

from itertools import accumulate

import jax
import jax.numpy as jnp
from flax import nnx

from mistral_jax.model.norm_kernel import normalised, plainly_normalised
from mistral_jax.quant.array import SplitRows, padded
from mistral_jax.quant.product import matmul, matmul_by_part, take_rows


class Linear(nnx.Module):
    """`y = x Wᵀ + b`. The result is float32 for all types of `x` and `W`: the caller rounds once, after the operations
    that follow the product.

    With `bias=False` the attribute `bias` is None.
    """

    by_kernel = False
    """Whether the weight is multiplied by the kernel of `mistral_jax.quant.matrix_kernel`; set by the loader."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        scale = in_features**-0.5
        self.weight = nnx.Param(padded(jax.random.normal(rngs.params(), (out_features, in_features), dtype) * scale))
        self.bias = nnx.Param(jnp.zeros((out_features,), dtype)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = matmul(x, self.weight.get_value(), by_kernel=self.by_kernel)
        return y if self.bias is None else y + self.bias[...].astype(jnp.float32)

    def by_part(self, x: jax.Array) -> list[jax.Array] | None:
        """The outputs of each part of a fused matrix, sharded over the devices like its rows: float32 [..., out_p].

        Returns: None if the matrix is not sharded.
        """
        weight = self.weight.get_value()
        if not isinstance(weight, SplitRows):
            return None
        parts = matmul_by_part(x, weight)
        if self.bias is None:
            return parts
        biases = jnp.split(self.bias[...].astype(jnp.float32), list(accumulate(weight.sizes[:-1])))
        return [y + bias for y, bias in zip(parts, biases, strict=True)]

    def gathered(self, x: jax.Array) -> jax.Array:
        """Replicate `x`, computed from this layer's outputs, on every device before its last axis is summed over."""
        weight = self.weight.get_value()
        return weight.whole(x) if isinstance(weight, SplitRows) else x


class Embedding(nnx.Module):
    """A row of `weight` [V, D] for each token, in the type `dtype` for every form of the weight."""

    by_kernel = False
    """Of products with the weight, where it is the output matrix as well; see `Linear`."""

    def __init__(self, vocab_size: int, features: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.dtype = jnp.dtype(dtype)
        weight = jax.random.normal(rngs.params(), (vocab_size, features), dtype) * features**-0.5
        self.weight = nnx.Param(padded(weight))

    def __call__(self, tokens: jax.Array) -> jax.Array:
        return take_rows(self.weight.get_value(), tokens, self.dtype)


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation, computed in float32 (arXiv 1910.07467)."""

    by_kernel = False
    """Whether `mistral_jax.model.norm_kernel` computes it; set by the loader."""

    def __init__(self, features: int, *, eps: float, dtype: jax.typing.DTypeLike) -> None:
        self.weight = nnx.Param(jnp.ones((features,), dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        form = normalised if self.by_kernel else plainly_normalised
        return form(x, self.weight[...], self.eps)
