"""X-LoRA: for each token and layer a classifier mixes the adapters, from the model's own hidden states.

A token takes two passes through the decoder, each with its own KV cache:

1. The *scaling pass* runs the base model (if `scaling_pass_value` is not 0, with all adapters at that weight) and gives
   the hidden state after the final norm. The classifier turns it into *scalings*: one number for each adapter, for the
   whole model or (`layerwise`) for each adapted module.
2. The *scaled pass* runs the decoder with the adapters weighted by the scalings. Its logits predict the next token.

Both caches are exact: a token's scalings do not depend on later tokens, so its keys and values in either pass never
change.

Source: X-LoRA (arXiv 2402.07148), in the form of PEFT's implementation, in evaluation mode.

Axis letters: B rows, T tokens, M scaling columns, A adapters of the bank, D model dim, E experts: the first adapters of
the bank, which the classifier mixes.
"""

from __future__ import annotations

from functools import reduce
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from conversion.adapters.xlora.config import XLoRAConfig
from mistral_jax.model.layers import Linear
from mistral_jax.model.low_rank import SHARED, AdapterBank, Mixture, ScalingColumns
from mistral_jax.model.mistral import Mistral


class XLoRA(nnx.Module):
    """The classifier, and the adapter weights from its output. Parameters are float32 for all types of the model."""

    def __init__(
        self, config: XLoRAConfig, *, num_experts: int, columns: ScalingColumns = SHARED, rngs: nnx.Rngs
    ) -> None:
        """A classifier with random weights.

        Args:
          num_experts: E; adapters 0 to E - 1 of the bank, in the order of the classifier's columns.
          columns: for layerwise classifiers only.
        """
        if not config.layerwise_scalings and columns.count != 1:
            raise ValueError(f"{columns.count} columns for a classifier that is not layerwise; expected one")
        self.config = config
        self.num_experts = num_experts
        self.columns = columns
        widths = config.widths(columns.count * num_experts)
        self.layers = nnx.List(
            [Linear(into, out, bias=config.use_bias, dtype=jnp.float32, rngs=rngs) for into, out in pairwise(widths)]
        )

    def scalings(self, hidden: jax.Array, *, dropout: jax.Array | None = None) -> jax.Array:
        """The classifier's output: hidden states [B, T, D] of the scaling pass -> float32 [B, T, M, E].

        Args:
          dropout: a PRNG key, for training; None: no dropout.
        """
        x = hidden.astype(jnp.float32)
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.layers) - 1 and self.config.enable_relu_and_dropout:
                x = jax.nn.relu(x)
                if dropout is not None and self.config.xlora_dropout_p > 0:
                    keep = 1.0 - self.config.xlora_dropout_p
                    kept = jax.random.bernoulli(jax.random.fold_in(dropout, i), keep, x.shape)
                    x = jnp.where(kept, x / keep, 0.0)
        scalings = x.reshape(*x.shape[:-1], self.columns.count, self.num_experts)
        if self.config.enable_softmax:
            scalings = _softmax(scalings / self.config.softmax_temperature)
        return scalings

    def weights(self, scalings: jax.Array, adapters: int) -> jax.Array:
        """Adapter weights from scalings: float32 [..., M, E] -> [..., M, A] for a bank of `adapters` adapters."""
        config = self.config
        weights = scalings
        if config.top_k_lora is not None and config.top_k_lora < self.num_experts:
            index = lax.top_k(scalings, config.top_k_lora)[1]
            chosen = jnp.sum(jax.nn.one_hot(index, self.num_experts, dtype=jnp.float32), axis=-2)
            weights = jnp.where(chosen > 0, scalings, 0.0)
        if config.enable_softmax_topk:
            nonzero = weights != 0
            weights = jnp.where(nonzero, _softmax(jnp.where(nonzero, weights, -jnp.inf)), 0.0)
        weights = weights * config.global_scaling_weight
        spare = adapters - self.num_experts
        return jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, spare)])

    def scaling_mixture(self, bank: AdapterBank, adapters: int) -> Mixture | None:
        """The mixture of the scaling pass; None if it runs the base model alone."""
        value = self.config.scaling_pass_value
        if value == 0:
            return None
        constant = jnp.full((1, 1, 1, self.num_experts), value, jnp.float32)
        return Mixture(bank=bank, weights=self.weights(constant, adapters))

    def hidden_states(
        self,
        model: Mistral,
        bank: AdapterBank,
        tokens: jax.Array,
        *,
        adapters: int | None = None,
        dropout: jax.Array | None = None,
        remat: bool = False,
    ) -> tuple[jax.Array, jax.Array]:
        """Both passes over whole texts, without caches: int32 [B, T] -> hidden states [B, T, D], scalings [B, T, M, E].

        Gradients flow through the scaled pass to the classifier, and not through the scaling pass.

        Args:
          adapters: A; None: the bank holds the experts only.
          dropout: a PRNG key, for training; None: no dropout.
          remat: see `Mistral.hidden_states`.
        """
        mixture, scalings = self.mixture(model, bank, tokens, adapters=adapters, dropout=dropout)
        return model.hidden_states(tokens, mixture, remat=remat), scalings

    def mixture(
        self,
        model: Mistral,
        bank: AdapterBank,
        tokens: jax.Array,
        *,
        adapters: int | None = None,
        dropout: jax.Array | None = None,
    ) -> tuple[Mixture, jax.Array]:
        """The scaling pass of `hidden_states`: returns the mixture for the scaled pass, and the scalings."""
        adapters = self.num_experts if adapters is None else adapters
        first = lax.stop_gradient(model.hidden_states(tokens, self.scaling_mixture(bank, adapters)))
        scalings = self.scalings(first, dropout=dropout)
        return Mixture(bank=bank, weights=self.weights(scalings, adapters), columns=self.columns), scalings


def _softmax(x: jax.Array) -> jax.Array:
    """Softmax over the last, short axis; term by term in a fixed order, so that the bits do not depend on the number of
    rows."""
    terms = [x[..., i] for i in range(x.shape[-1])]
    largest = reduce(jnp.maximum, terms)
    powers = [jnp.exp(term - largest) for term in terms]
    total = reduce(jnp.add, powers)
    return jnp.stack([power / total for power in powers], axis=-1)
