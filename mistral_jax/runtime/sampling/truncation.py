"""Which tokens a draw may choose: exact truncation of each row's distribution, without sorting the vocabulary.

The edge between kept and dropped tokens is found by bisecting the bits of the float that separates them. Every result
depends on its own row alone, to the last bit.

Axis letters: B rows, V vocabulary.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from mistral_jax.quant.dot import row_sum


def kth_largest(x: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest value of each row: x float32 [B, V], k int32 [B, 1] in [1, V] -> float32 [B, 1]. Exact.

    Bisects the floats' bits for the greatest value that at least k elements reach.
    """
    keys = ordered(x)
    low, high = jnp.iinfo(jnp.int32).min, jnp.iinfo(jnp.int32).max

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        # The mean rounded up, without overflow.
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        enough = jnp.sum(keys >= middle, axis=-1, keepdims=True) >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    start = (jnp.full_like(k, low), jnp.full_like(k, high))
    found, _ = lax.fori_loop(0, 32, halve, start)
    return ordered_inverse(found)


def ordered(x: jax.Array) -> jax.Array:
    """Maps floats to integers of the same order."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def ordered_inverse(keys: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(jnp.where(keys < 0, keys ^ 0x7FFFFFFF, keys), jnp.float32)


def nucleus_edge(probabilities: jax.Array, top_p: jax.Array) -> jax.Array:
    """The smallest probability in each row's nucleus, [B, 1]: the greatest p such that those >= p sum to at least
    `top_p`."""

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high + 1) >> 1
        edge = lax.bitcast_convert_type(middle, jnp.float32)
        mass = row_sum(jnp.where(probabilities >= edge, probabilities, 0.0))[:, None]
        enough = mass >= top_p
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    # The bits of floats in [0, 1] are integers in the same order, below 2**30.
    zeros = jnp.zeros(top_p.shape, jnp.int32)
    found, _ = lax.fori_loop(0, 31, halve, (zeros, jnp.full_like(zeros, 0x3F800000)))
    return lax.bitcast_convert_type(found, jnp.float32)


def typical_tokens(scaled: jax.Array, kept: jax.Array, typical_p: jax.Array) -> jax.Array:
    """Locally typical sampling (Meister et al., 2022): the tokens whose surprise is nearest to the expected one.

    Args:
      scaled: float32 [B, V], logits after temperature.
      kept: bool [B, V], the tokens that are left.
      typical_p: float32 [B, 1]: how much probability the result has at least; ties at the edge are all kept.
    Returns: bool [B, V]: those of `kept` that are typical.
    """
    shifted = scaled - row_max(jnp.where(kept, scaled, -jnp.inf))
    weights = jnp.where(kept, jnp.exp(shifted), 0.0)
    total = row_sum(weights)[:, None]
    probabilities = weights / total
    surprise = jnp.log(total) - shifted
    entropy = row_sum(jnp.where(weights > 0, probabilities * surprise, 0.0))[:, None]
    distance = jnp.where(kept, jnp.abs(surprise - entropy), jnp.inf)

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + ((high - low) >> 1)
        edge = lax.bitcast_convert_type(middle, jnp.float32)
        mass = row_sum(jnp.where(distance <= edge, probabilities, 0.0))[:, None]
        enough = mass >= typical_p
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    # The bits of floats in [0, inf] are integers in the same order.
    zeros = jnp.zeros(typical_p.shape, jnp.int32)
    _, found = lax.fori_loop(0, 31, halve, (zeros, jnp.full_like(zeros, 0x7F800000)))
    return kept & (distance <= lax.bitcast_convert_type(found, jnp.float32))


def tokens_within_sigma(scaled: jax.Array, n: jax.Array) -> jax.Array:
    """Top-nσ sampling (Tang et al., 2024): the tokens whose logits are at most `n` standard deviations below the
    largest.

    Args:
      scaled: float32 [B, V]; tokens at -inf do not count.
      n: float32 [B, 1].
    Returns: bool [B, V].
    """
    possible = scaled > -jnp.inf
    count = jnp.maximum(row_sum(possible.astype(jnp.float32)), 1.0)[:, None]
    mean = row_sum(jnp.where(possible, scaled, 0.0))[:, None] / count
    deviations = jnp.where(possible, scaled - mean, 0.0)
    sigma = jnp.sqrt(row_sum(deviations * deviations)[:, None] / count)
    return scaled >= row_max(scaled) - n * sigma


def tokens_after_xtc(probabilities: jax.Array, kept: jax.Array, threshold: jax.Array) -> jax.Array:
    """Exclude top choices: of the tokens with at least `threshold`, only the least likely stay (all, if they tie).

    Args:
      probabilities: float32 [B, V], of the tokens in `kept`.
      kept: bool [B, V].
      threshold: float32 [B, 1].
    Returns: bool [B, V].
    """
    top = kept & (probabilities >= threshold)
    least = jnp.min(jnp.where(top, probabilities, jnp.inf), axis=-1, keepdims=True)
    return kept & ~(top & (probabilities > least))


def row_max(x: jax.Array) -> jax.Array:
    """The largest value of each row: [B, V] -> [B, 1].

    The barrier keeps XLA's CPU backend from fusing it with the exponentials that follow. From 4096 values on that uses
    another exponential, so a row's bits would depend on the number of rows.
    """
    return lax.optimization_barrier(jnp.max(x, axis=-1, keepdims=True))
