"""The loss of all trainings: next-token cross entropy of the tokens that count."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from mistral_jax.model.mistral import Mistral


def next_token_loss(model: Mistral, hidden: jax.Array, tokens: jax.Array, weights: jax.Array) -> jax.Array:
    """Sum of the losses, in nats, each times its weight: float32 scalar.

    Args:
      hidden: [B, T, D], after the final norm, of all tokens but the last.
      tokens: int32 [B, T + 1].
      weights: float32 [B, T], of the tokens that are to be predicted.
    """
    losses = optax.softmax_cross_entropy_with_integer_labels(model.logits(hidden), tokens[:, 1:])
    return jnp.sum(losses * weights)
