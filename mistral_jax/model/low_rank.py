"""Low-rank adapters: all adapters stacked, and one adapter weight for each adapter, row and token.

A linear layer `y = W x` with adapters becomes

    y = W x + sum_j w_j * scale_j * B_j A_j x

where the request or the X-LoRA classifier gives `w` for each token: all zero is the base model, one-hot a LoRA, and
anything else a mixture. Rows of one batch may differ, so one program serves them all.

The factors of all adapters are stacked along one axis of `R` *rank rows*. An adapter owns as many rank rows as its
largest rank; `owner` maps each rank row to its adapter. So adapters with different ranks, scales and target modules
need no padding to a common rank; an adapter has zeros where it has no factor. Loading or unloading an adapter changes
only numbers in rank rows, and needs no new program.

    rank rows R   0 1 2 3 | 4 5 6 7 8 9 | 10 11      A_all [R, in], B_all [out, R]
    owner         0 0 0 0 | 1 1 1 1 1 1 |  2  2      (A x) is multiplied by w[owner] * scale, then by B

Source: LoRA (arXiv 2106.09685). Stacking: requests can share the base product, as Punica observed (arXiv 2310.18547).

Axis letters: B rows, T tokens, M scaling columns, A adapters, R rank rows, P parts of a fused projection.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import jax
import jax.numpy as jnp

from conversion.adapters.modules import ModuleKey
from conversion.weights.decoder_weights import ADAPTABLE
from mistral_jax.model.config import MistralConfig
from mistral_jax.quant.array import Plain
from mistral_jax.quant.product import matmul

PROJECTIONS: dict[str, tuple[str, ...]] = {
    weight.projection: tuple(part.name for part in weight.parts) for weight in ADAPTABLE
}
"""The matrices of a decoder layer of `mistral_jax.model.mistral`, each with its fused parts in the order of their
rows."""


def part_features(config: MistralConfig) -> dict[str, tuple[int, int]]:
    """(out, in) of each part."""
    return {
        part.name: (rows, weight.shape(config)[-1])
        for weight in ADAPTABLE
        for part, rows in zip(weight.parts, weight.part_rows(config), strict=True)
    }


@partial(jax.tree_util.register_dataclass, data_fields=["a", "b", "scale"], meta_fields=["parts", "out_features"])
@dataclass(frozen=True, kw_only=True)
class LowRank:
    """The factors of all adapters for one projection, limited to the parts that some adapter may change."""

    a: Plain
    """[P * R, in]: the A of all parts, stacked, so that one product computes them all."""
    b: tuple[Plain, ...] | Plain
    """[out_p, R] for each part; if small, one block-diagonal [out, P * R] instead: one product for all parts."""
    scale: jax.Array
    """float32 [P, R]: the owner's alpha / r or alpha / sqrt(r); zero where it has no factor."""
    parts: tuple[str, ...]
    """Static: names of the P parts, in the order of the projection's rows."""
    out_features: tuple[tuple[str, int], ...]
    """Static: name and rows of every part of the projection, with and without adapters."""

    @property
    def apart(self) -> tuple[Plain, ...]:
        """The B of each part; only if they are stored separately."""
        assert isinstance(self.b, tuple)
        return self.b

    def __call__(self, x: jax.Array, weights: tuple[jax.Array, ...], *, by_kernel: bool = False) -> jax.Array:
        """What the adapters add to the projection of `x` [B, T, in]: float32 [B, T, out].

        Args:
          weights: for each part float32 [B, T, R], the adapter weight of each rank row's owner; axes of length 1 are
            broadcast.
          by_kernel: see `mistral_jax.quant.product.matmul`.
        """
        P, R = self.scale.shape
        product = partial(matmul, by_kernel=by_kernel)
        z = product(x, self.a).reshape(*x.shape[:-1], P, R)
        weighted = [(z[..., i, :] * (weights[i] * self.scale[i])).astype(x.dtype) for i in range(P)]
        if not isinstance(self.b, tuple):
            return product(jnp.concatenate(weighted, axis=-1), self.b)
        deltas = {name: product(weighted[i], self.b[i]) for i, name in enumerate(self.parts)}
        rows = x.shape[:-1]
        out = [
            deltas[name] if name in deltas else jnp.zeros((*rows, size), jnp.float32)
            for name, size in self.out_features
        ]
        return out[0] if len(out) == 1 else jnp.concatenate(out, axis=-1)


@partial(jax.tree_util.register_dataclass, data_fields=["owner", "layers"], meta_fields=[])
@dataclass(frozen=True, kw_only=True)
class AdapterBank:
    """All adapters of a model, on the device."""

    owner: jax.Array
    """int32 [R]: the adapter that owns each rank row; arbitrary for free rows, whose scales are zero."""
    layers: tuple[dict[str, LowRank], ...]
    """For each decoder layer the factors by projection; projections that no adapter may change are absent."""

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(self))


@dataclass(frozen=True, kw_only=True)
class ScalingColumns:
    """Which of the M scaling columns each module reads. Static: part of a compiled program."""

    count: int = 1
    """M"""
    index: tuple[tuple[ModuleKey, int], ...] = ()
    """Column of each adapted module; other modules read column 0."""

    def of(self, key: ModuleKey) -> int:
        # The adapters that have columns have no factors in modules without one.
        return dict(self.index).get(key, 0)


SHARED = ScalingColumns()
"""One column for all modules."""


@dataclass(frozen=True, kw_only=True)
class Mixture:
    """Adapters and their weights for one pass through the model, inside a jitted program."""

    bank: AdapterBank
    weights: jax.Array
    """float32 [B, T, M, A]; axes B, T and M may be 1 and are broadcast."""
    columns: ScalingColumns = SHARED

    @cached_property
    def by_rank_row(self) -> tuple[jax.Array, ...]:
        """The adapter weight of each rank row's owner, for each of the M columns: float32 [B, T, R]."""
        weights = jnp.take(self.weights, self.bank.owner, axis=-1, mode="clip")
        return tuple(weights[:, :, m] for m in range(weights.shape[2]))

    def layer(self, index: int) -> LayerMixture:
        """The mixture as one decoder layer sees it."""
        factors = self.bank.layers[index]
        weights = {
            projection: tuple(self.by_rank_row[self.columns.of(ModuleKey(index, part))] for part in low_rank.parts)
            for projection, low_rank in factors.items()
        }
        return LayerMixture(factors=factors, weights=weights)


@partial(jax.tree_util.register_dataclass, data_fields=["factors", "weights"], meta_fields=[])
@dataclass(frozen=True, kw_only=True)
class LayerMixture:
    """A mixture as one decoder layer uses it. A pytree with the same structure for layers with the same factors."""

    factors: dict[str, LowRank]
    """Of each projection that an adapter may change."""
    weights: dict[str, tuple[jax.Array, ...]]
    """For each part of these the weights of the rank rows' owners: float32 [B, T, R]."""

    def add(self, projection: str, x: jax.Array, y: jax.Array, *, by_kernel: bool = False) -> jax.Array:
        """Add the adapters' contribution to `y` float32 [B, T, out], the base model's product of `x` [B, T, in].

        Args:
          by_kernel: see `mistral_jax.quant.product.matmul`.
        """
        factors = self.factors.get(projection)
        if factors is None:
            return y
        with jax.named_scope("low_rank"):
            return y + factors(x, self.weights[projection], by_kernel=by_kernel)
