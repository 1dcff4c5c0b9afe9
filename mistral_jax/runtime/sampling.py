"""Sampling on the device: one program serves all settings, row by row.

Each row has its own temperature, truncation, penalties, bias and seed, stored in arrays. Work that no active row needs
is skipped at run time (`Features`), not compiled away. A row's draw is a function of its seed and the token's position
alone, so it does not depend on other rows, slots or timing.

The vocabulary is never sorted: the k-th largest logit and the edge of the nucleus are found exactly, by bisecting the
bits of the float that separates kept from dropped tokens.

Axis letters: B rows, V vocabulary, W tokens that the repetition penalty looks back at.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mistral_jax.quant.dot import row_sum
from mistral_jax.runtime.sampling_params import MAX_TOP_LOGPROBS, SamplingParams

LOWEST_LOGPROB = -9999.0
"""Reported for probability zero, because JSON has no infinity (as in OpenAI's API)."""

SMALLEST = 1e-6
"""Smaller temperatures, values of top_p and repetition penalties are raised to this: in float32 they could become zero,
or a quotient by them infinite. At this value only the most likely token is left, except for exact ties."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["scalars", "top_k", "seeds", "recent", "output_counts", "bias"],
    meta_fields=[],
)
@dataclass(frozen=True)
class SamplerRows:
    """The sampler's state of each slot. Donated in every step, like the cache."""

    scalars: jax.Array  # float32 [B, 6]: see `row_scalars`
    top_k: jax.Array  # int32 [B]; 0: all
    seeds: jax.Array  # uint32 [B, 2]
    recent: jax.Array  # int32 [B, W]: the token at position p at index p % W; V: none
    output_counts: jax.Array  # int32 [B, V]: how often each token was generated
    bias: jax.Array  # float32 [B, V]: logit_bias

    @classmethod
    def allocate(cls, *, slots: int, vocab_size: int, repeat_last_n: int) -> SamplerRows:
        """Rows with neutral settings. `repeat_last_n` is W; 0 turns the repetition penalty off."""
        return cls(
            scalars=jnp.tile(jnp.asarray(row_scalars(SamplingParams(temperature=0.0))), (slots, 1)),
            top_k=jnp.zeros((slots,), jnp.int32),
            seeds=jnp.zeros((slots, 2), jnp.uint32),
            recent=jnp.full((slots, max(repeat_last_n, 1)), vocab_size, jnp.int32),
            output_counts=jnp.zeros((slots, vocab_size), jnp.int32),
            bias=jnp.zeros((slots, vocab_size), jnp.float32),
        )


def row_scalars(params: SamplingParams) -> np.ndarray:
    """temperature (0: greedy), top_p, min_p, repetition, presence, frequency: float32 [6]."""
    temperature = 0.0 if params.is_greedy else max(params.temperature, SMALLEST)
    values = (
        temperature,
        max(params.top_p, SMALLEST),
        params.min_p,
        max(params.repetition_penalty, SMALLEST),
        params.presence_penalty,
        params.frequency_penalty,
    )
    return np.array(values, np.float32)


def seed_words(seed: int) -> np.ndarray:
    """A 64-bit seed as the two words of a key: uint32 [2]."""
    unsigned = seed % 2**64
    return np.array([unsigned >> 32, unsigned & 0xFFFFFFFF], np.uint32)


def recent_tokens(prompt: tuple[int, ...], window: int, vocab_size: int) -> np.ndarray:
    """A row of `SamplerRows.recent` after `prompt`: int32 [W]."""
    row = np.full((window,), vocab_size, np.int32)
    for position in range(max(0, len(prompt) - window), len(prompt)):
        row[position % window] = prompt[position]
    return row


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """The sampler's work that at least one active row needs; the rest is skipped. The host knows it without reading
    from the device."""

    sample: bool = False
    top_k: bool = False
    top_p: bool = False
    adjust: bool = False
    """Penalties or bias."""
    logprobs: bool = False
    mask: bool = False
    """A mask of allowed tokens."""

    @classmethod
    def of(cls, params: SamplingParams) -> Features:
        drawn = not params.is_greedy
        return cls(
            sample=drawn,
            top_k=drawn and params.top_k > 0,
            top_p=drawn and params.top_p < 1.0,
            adjust=bool(params.logit_bias)
            or params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0,
            logprobs=params.logprobs is not None,
        )

    def as_array(self) -> np.ndarray:
        """bool [6], in the order of the fields."""
        return np.array([self.sample, self.top_k, self.top_p, self.adjust, self.logprobs, self.mask])

    def __or__(self, other: Features) -> Features:
        return Features(
            sample=self.sample or other.sample,
            top_k=self.top_k or other.top_k,
            top_p=self.top_p or other.top_p,
            adjust=self.adjust or other.adjust,
            logprobs=self.logprobs or other.logprobs,
            mask=self.mask or other.mask,
        )


PACKED_WIDTH = 2 + 2 * MAX_TOP_LOGPROBS


def mask_words(vocab_size: int) -> int:
    """Number of 32-bit words of a mask of allowed tokens."""
    return -(-vocab_size // 32)


def sample(
    logits: jax.Array, rows: SamplerRows, positions: jax.Array, features: jax.Array, mask: jax.Array, *, repeat: bool
) -> tuple[jax.Array, jax.Array]:
    """Choose a token for each row.

    Args:
      logits: float32 [B, V], the model's unmodified logits.
      rows: of the same B rows.
      positions: int32 [B], the position of the token to choose.
      features: bool [6], see `Features`.
      mask: int32 [B, ceil(V / 32)]: bit t % 32 of word t // 32 is set if token t may be chosen; at least one in each
        row. Read only with `features.mask`.
      repeat: static; whether repetition penalties are supported (`repeat_last_n` > 0).
    Returns:
      tokens int32 [B]: -1 where the logits are not finite.
      packed int32 [B, PACKED_WIDTH], for one transfer to the host: token, log-probability, the most likely tokens,
        their log-probabilities (floats as bits). Without `features.logprobs` only the token is set.
    """
    do_sample, do_top_k, do_top_p, do_adjust, do_logprobs, do_mask = features
    adjusted = lax.cond(do_adjust, lambda: _adjust(logits, rows, repeat=repeat), lambda: logits)
    adjusted = lax.cond(
        do_mask, lambda: jnp.where(_allowed(mask, logits.shape[-1]), adjusted, -jnp.inf), lambda: adjusted
    )
    greedy = jnp.argmax(adjusted, axis=-1).astype(jnp.int32)
    drawn = lax.cond(
        do_sample, lambda: _draw(adjusted, rows, positions, do_top_k, do_top_p), lambda: jnp.zeros_like(greedy)
    )
    tokens = jnp.where(rows.scalars[:, 0] > 0, drawn, greedy)
    is_number = jnp.isfinite(jnp.max(logits, axis=-1))
    tokens = jnp.where(is_number, tokens, -1)
    packed = lax.cond(do_logprobs, lambda: _logprobs(logits, tokens), lambda: _no_logprobs(tokens))
    return tokens, packed


def _allowed(mask: jax.Array, vocab_size: int) -> jax.Array:
    """A mask in bits, int32 [B, ceil(V / 32)], as bool [B, V]."""
    bits = (mask[:, :, None] >> jnp.arange(32)) & 1
    return bits.reshape(mask.shape[0], -1)[:, :vocab_size] != 0


def _adjust(logits: jax.Array, rows: SamplerRows, *, repeat: bool) -> jax.Array:
    B = logits.shape[0]
    _, _, _, repetition, presence, frequency = (column[:, None] for column in rows.scalars.T)
    if repeat:
        seen = jnp.zeros(logits.shape, jnp.bool_).at[jnp.arange(B)[:, None], rows.recent].set(True, mode="drop")
        penalised = jnp.where(logits > 0, logits / repetition, logits * repetition)
        logits = jnp.where(seen, penalised, logits)
    logits = logits - frequency * rows.output_counts - presence * (rows.output_counts > 0)
    return logits + rows.bias


def _draw(
    logits: jax.Array, rows: SamplerRows, positions: jax.Array, do_top_k: jax.Array, do_top_p: jax.Array
) -> jax.Array:
    """Draw a token from each row's truncated distribution, with the Gumbel-max trick: int32 [B]."""
    V = logits.shape[-1]
    temperature, top_p, min_p = (rows.scalars[:, i : i + 1] for i in range(3))
    scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
    k = jnp.where(rows.top_k > 0, jnp.minimum(rows.top_k, V), V)[:, None]
    kept = lax.cond(do_top_k, lambda: scaled >= _kth_largest(scaled, k), lambda: jnp.ones(scaled.shape, jnp.bool_))
    weights = jnp.where(kept, jnp.exp(scaled - _row_max(scaled)), 0.0)
    probabilities = weights / row_sum(weights)[:, None]
    kept = lax.cond(do_top_p, lambda: kept & (probabilities >= _nucleus_edge(probabilities, top_p)), lambda: kept)
    kept = kept & (probabilities >= min_p * jnp.max(probabilities, axis=-1, keepdims=True))

    def noise(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.wrap_key_data(seed, impl="threefry2x32"), position)
        return jax.random.gumbel(key, (V,), jnp.float32)

    gumbel = jax.vmap(noise)(rows.seeds, positions)
    return jnp.argmax(jnp.where(kept, scaled + gumbel, -jnp.inf), axis=-1).astype(jnp.int32)


def _kth_largest(x: jax.Array, k: jax.Array) -> jax.Array:
    """The k-th largest value of each row: x float32 [B, V], k int32 [B, 1] in [1, V] -> float32 [B, 1]. Exact.

    Bisects the floats' bits for the greatest value that at least k elements reach.
    """
    keys = _ordered(x)
    low, high = jnp.iinfo(jnp.int32).min, jnp.iinfo(jnp.int32).max

    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        # The mean rounded up, without overflow.
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        enough = jnp.sum(keys >= middle, axis=-1, keepdims=True) >= k
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle - 1)

    start = (jnp.full_like(k, low), jnp.full_like(k, high))
    found, _ = lax.fori_loop(0, 32, halve, start)
    return _ordered_inverse(found)


def _ordered(x: jax.Array) -> jax.Array:
    """Maps floats to integers of the same order."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return jnp.where(bits < 0, bits ^ 0x7FFFFFFF, bits)


def _ordered_inverse(keys: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(jnp.where(keys < 0, keys ^ 0x7FFFFFFF, keys), jnp.float32)


def _nucleus_edge(probabilities: jax.Array, top_p: jax.Array) -> jax.Array:
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


def _row_max(x: jax.Array) -> jax.Array:
    """The largest value of each row: [B, V] -> [B, 1].

    The barrier keeps XLA's CPU backend from fusing it with the exponentials that follow. From 4096 values on that uses
    another exponential, so a row's bits would depend on the number of rows.
    """
    return lax.optimization_barrier(jnp.max(x, axis=-1, keepdims=True))


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(jnp.maximum(x, LOWEST_LOGPROB), jnp.int32)


def _logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    shifted = logits - _row_max(logits)
    logprobs = shifted - jnp.log(row_sum(jnp.exp(shifted)))[:, None]
    chosen = jnp.take_along_axis(logprobs, jnp.maximum(tokens, 0)[:, None], axis=-1)
    count = min(MAX_TOP_LOGPROBS, logits.shape[-1])
    top, ids = lax.top_k(logprobs, count)
    pad = ((0, 0), (0, MAX_TOP_LOGPROBS - count))
    parts = [tokens[:, None], _bits(chosen), jnp.pad(ids.astype(jnp.int32), pad), jnp.pad(_bits(top), pad)]
    return jnp.concatenate(parts, axis=-1)


def score_tokens(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The log-probabilities of given tokens, packed as by `sample`.

    Args:
      logits: float32 [T, V], the model's unmodified logits.
      tokens: int32 [T], the tokens that follow.
    Returns: packed int32 [T, PACKED_WIDTH]; the token is -1 where the logits are not finite.
    """
    is_number = jnp.isfinite(jnp.max(logits, axis=-1))
    return _logprobs(logits, jnp.where(is_number, tokens, -1))


def _no_logprobs(tokens: jax.Array) -> jax.Array:
    return jnp.zeros((tokens.shape[0], PACKED_WIDTH), jnp.int32).at[:, 0].set(tokens)


@dataclass(frozen=True, slots=True)
class Sampled:
    """The token that a step chose for one row, on the host."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most likely tokens with their log-probabilities, most likely first."""


def unpack(row: np.ndarray, alternatives: int | None) -> Sampled:
    """Read one row of `packed`, int32 [PACKED_WIDTH].

    Args:
      alternatives: number of most likely tokens to read; None: only the token is set.
    """
    token = int(row[0])
    if alternatives is None:
        return Sampled(token, 0.0, ())
    floats = row.view(np.float32)
    ids = row[2 : 2 + alternatives].tolist()
    values = floats[2 + MAX_TOP_LOGPROBS : 2 + MAX_TOP_LOGPROBS + alternatives].tolist()
    return Sampled(token, float(floats[1]), tuple(zip(ids, values, strict=True)))
