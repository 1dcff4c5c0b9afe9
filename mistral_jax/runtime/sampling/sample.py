"""Sampling on the device: one program serves all settings, row by row.

Each row has its own temperature, truncation, penalties, bias and seed, stored in arrays. Work that no active row needs
is skipped at run time (`Features`), not compiled away. A row's draw is a function of its seed and the token's position
alone, so it does not depend on other rows, slots or timing.

The vocabulary is never sorted; see `mistral_jax.runtime.sampling.truncation`.

Axis letters: B rows, V vocabulary, W tokens that the repetition penalty looks back at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mistral_jax.quant.dot import row_sum
from mistral_jax.runtime.sampling import truncation, truncation_kernel
from mistral_jax.runtime.sampling.params import MAX_TOP_LOGPROBS, SamplingParams
from mistral_jax.runtime.sampling.token_rules import RuleRows, apply_rules
from mistral_jax.runtime.sampling.truncation import (
    row_max,
    tokens_after_xtc,
    tokens_within_sigma,
    typical_tokens,
)

LOWEST_LOGPROB = -9999.0
"""Reported for probability zero, because JSON has no infinity (as in OpenAI's API)."""

NOT_NUMBERS, NO_TOKEN = -1, -2
"""In place of a token: the logits are not finite; every token is excluded."""

SMALLEST = 1e-6
"""Smaller temperatures, values of top_p and repetition penalties are raised to this: in float32 they could become zero,
or a quotient by them infinite. At this value only the most likely token is left, except for exact ties."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["scalars", "top_k", "seeds", "recent", "output_counts", "bias", "rules"],
    meta_fields=[],
)
@dataclass(frozen=True)
class SamplerRows:
    """The sampler's state of each slot. Donated in every step, like the cache."""

    scalars: jax.Array  # float32 [B, 10]: see `row_scalars`
    top_k: jax.Array  # int32 [B]; 0: all
    seeds: jax.Array  # uint32 [B, 2]
    recent: jax.Array  # int32 [B, W]: the token at position p at index p % W; V: none
    output_counts: jax.Array  # int32 [B, V]: how often each token was generated
    bias: jax.Array  # float32 [B, V]: logit_bias; -inf for tokens that must not be chosen
    rules: RuleRows

    @classmethod
    def allocate(cls, *, slots: int, vocab_size: int, repeat_last_n: int, length: int) -> SamplerRows:
        """Rows with neutral settings. `repeat_last_n` is W; 0 turns the repetition penalty off. `length`: maximum
        tokens of a sequence."""
        return cls(
            scalars=jnp.tile(jnp.asarray(row_scalars(SamplingParams(temperature=0.0))), (slots, 1)),
            top_k=jnp.zeros((slots,), jnp.int32),
            seeds=jnp.zeros((slots, 2), jnp.uint32),
            recent=jnp.full((slots, max(repeat_last_n, 1)), vocab_size, jnp.int32),
            output_counts=jnp.zeros((slots, vocab_size), jnp.int32),
            bias=jnp.zeros((slots, vocab_size), jnp.float32),
            rules=RuleRows.allocate(slots=slots, vocab_size=vocab_size, length=length),
        )

    def first(self, count: int, *, copies: int = 1) -> SamplerRows:
        """The first `count` rows, `copies` times over, for `sample`; `rules` stay whole, as few steps need them."""
        few = jax.tree.map(lambda x: jnp.concatenate([x[:count]] * copies), replace(self, rules=None))  # type: ignore[arg-type]
        return replace(few, rules=self.rules)


def row_scalars(params: SamplingParams) -> np.ndarray:
    """temperature (0: greedy), top_p, min_p, repetition, presence, frequency, typical_p, top_n_sigma, xtc_probability,
    xtc_threshold: float32 [10]."""
    temperature = 0.0 if params.is_greedy else max(params.temperature, SMALLEST)
    values = (
        temperature,
        max(params.top_p, SMALLEST),
        params.min_p,
        max(params.repetition_penalty, SMALLEST),
        params.presence_penalty,
        params.frequency_penalty,
        max(params.typical_p, SMALLEST),
        params.top_n_sigma,
        params.xtc_probability,
        params.xtc_threshold,
    )
    return np.array(values, np.float32)


def seed_words(seed: int) -> np.ndarray:
    """A 64-bit seed as the two words of a key: uint32 [2]."""
    unsigned = seed % 2**64
    return np.array([unsigned >> 32, unsigned & 0xFFFFFFFF], np.uint32)


def row_bias(params: SamplingParams, vocab_size: int) -> np.ndarray | None:
    """A row of `SamplerRows.bias`, float32 [V]; None if it is zero."""
    banned = () if params.rules is None else params.rules.banned
    if not params.logit_bias and params.allowed_token_ids is None and not banned:
        return None
    bias = np.zeros((vocab_size,), np.float32)
    bias[list(params.logit_bias.keys())] = list(params.logit_bias.values())
    if params.allowed_token_ids is not None:
        only = np.full((vocab_size,), -np.inf, np.float32)
        only[list(params.allowed_token_ids)] = 0.0
        bias += only
    bias[list(banned)] = -np.inf
    return bias


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
    shape: bool = False
    """`typical_p` or `top_n_sigma`."""
    xtc: bool = False
    dry: bool = False
    bans: bool = False
    """`bad_words` of several tokens, or `min_tokens`."""

    @classmethod
    def of(cls, params: SamplingParams) -> Features:
        drawn = not params.is_greedy
        return cls(
            sample=drawn,
            top_k=drawn and params.top_k > 0,
            top_p=drawn and params.top_p < 1.0,
            adjust=bool(params.logit_bias)
            or params.allowed_token_ids is not None
            or bool(params.rules and params.rules.banned)
            or params.repetition_penalty != 1.0
            or params.presence_penalty != 0.0
            or params.frequency_penalty != 0.0,
            logprobs=params.logprobs is not None,
            shape=drawn and (params.typical_p < 1.0 or params.top_n_sigma > 0.0),
            xtc=drawn and params.xtc_probability > 0.0,
            dry=params.uses_dry,
            bans=params.min_tokens > 0 or bool(params.rules and params.rules.banned_sequences),
        )

    def as_array(self) -> np.ndarray:
        """bool [10], in the order of the fields."""
        return np.array([getattr(self, field.name) for field in fields(self)], np.bool_)

    def __or__(self, other: Features) -> Features:
        return Features(**{f.name: getattr(self, f.name) or getattr(other, f.name) for f in fields(self)})


ALL_FEATURES = Features(**{field.name: True for field in fields(Features)})

COMMON_FEATURES = (Features(), Features(sample=True), Features(sample=True, top_k=True, top_p=True))
"""Sets of features that have a sampler of their own on a GPU, from the least work to the most: there each decision at
run time makes the host wait for the device. Other sets take the sampler that decides all at run time."""


def smallest_sampler(features: Features, samplers: Sequence[Features | None]) -> Features | None:
    """The first sampler that does all that these features need; None: the one that decides at run time."""
    return next((only for only in samplers if only is not None and features | only == only), None)


PACKED_WIDTH = 3 + 2 * MAX_TOP_LOGPROBS


def mask_words(vocab_size: int) -> int:
    """Number of 32-bit words of a mask of allowed tokens."""
    return -(-vocab_size // 32)


def sample(
    logits: jax.Array,
    rows: SamplerRows,
    positions: jax.Array,
    features: jax.Array,
    mask: jax.Array,
    *,
    repeat: bool,
    copies: int = 1,
    only: Features | None = None,
    by_kernel: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Choose a token for each row.

    Args:
      logits: float32 [B, V], the model's unmodified logits.
      rows: of the same B rows, see `SamplerRows.first`.
      positions: int32 [B], the position of the token to choose.
      features: bool [10], see `Features`.
      mask: int32 [B, ceil(V / 32)]: bit t % 32 of word t // 32 is set if token t may be chosen; at least one in each
        row. Read only with `features.mask`.
      repeat: static; whether repetition penalties are supported (`repeat_last_n` > 0).
      copies: static; as given to `SamplerRows.first`.
      only: static; the features whose work is done, for all rows and without a decision at run time, which must include
        those that are set. None: `features` decides.
      by_kernel: static; find the edges of top_k and top_p by `mistral_jax.runtime.sampling.truncation_kernel`.
    Returns:
      tokens int32 [B]: NOT_NUMBERS or NO_TOKEN where there is none to choose.
      packed int32 [B, PACKED_WIDTH], for one transfer to the host: token, log-probability, the most likely tokens,
        their log-probabilities (floats as bits), the token's rank. Without `features.logprobs` only the token is set.
    """
    flag: dict[str, Flag] = {field.name: features[i] for i, field in enumerate(fields(Features))}
    if only is not None:
        flag = {name: getattr(only, name) for name in flag}
    adjusted = _when(flag["adjust"], lambda: _adjust(logits, rows, repeat=repeat), lambda: logits)
    adjusted = _when(
        flag["dry"] | flag["bans"],
        lambda: apply_rules(
            adjusted, rows.rules, positions, dry=jnp.asarray(flag["dry"]), bans=jnp.asarray(flag["bans"]), copies=copies
        ),
        lambda: adjusted,
    )
    adjusted = _when(
        flag["mask"], lambda: jnp.where(_allowed(mask, logits.shape[-1]), adjusted, -jnp.inf), lambda: adjusted
    )
    greedy = jnp.argmax(adjusted, axis=-1).astype(jnp.int32)
    drawn = _when(
        flag["sample"],
        lambda: _draw(adjusted, rows, positions, flag, by_kernel=by_kernel),
        lambda: jnp.zeros_like(greedy),
    )
    tokens = jnp.where(rows.scalars[:, 0] > 0, drawn, greedy)
    best = jnp.take_along_axis(adjusted, greedy[:, None], axis=-1)[:, 0]
    tokens = jnp.where(best > -jnp.inf, tokens, NO_TOKEN)
    is_number = jnp.isfinite(jnp.max(logits, axis=-1))
    tokens = jnp.where(is_number, tokens, NOT_NUMBERS)
    packed = _when(flag["logprobs"], lambda: _logprobs(logits, tokens), lambda: _no_logprobs(tokens))
    return tokens, packed


Flag = jax.Array | bool
"""Decided at run time, or while a program is traced."""


def _when[T](flag: Flag, yes: Callable[[], T], no: Callable[[], T]) -> T:
    if isinstance(flag, bool):
        return yes() if flag else no()
    return lax.cond(flag, yes, no)


def _allowed(mask: jax.Array, vocab_size: int) -> jax.Array:
    """A mask in bits, int32 [B, ceil(V / 32)], as bool [B, V]."""
    bits = (mask[:, :, None] >> jnp.arange(32)) & 1
    return bits.reshape(mask.shape[0], -1)[:, :vocab_size] != 0


def _adjust(logits: jax.Array, rows: SamplerRows, *, repeat: bool) -> jax.Array:
    B = logits.shape[0]
    repetition, presence, frequency = (rows.scalars[:, i : i + 1] for i in range(3, 6))
    if repeat:
        seen = jnp.zeros(logits.shape, jnp.bool_).at[jnp.arange(B)[:, None], rows.recent].set(True, mode="drop")
        penalised = jnp.where(logits > 0, logits / repetition, logits * repetition)
        logits = jnp.where(seen, penalised, logits)
    logits = logits - frequency * rows.output_counts - presence * (rows.output_counts > 0)
    return logits + rows.bias


def _draw(
    logits: jax.Array, rows: SamplerRows, positions: jax.Array, flag: Mapping[str, Flag], *, by_kernel: bool
) -> jax.Array:
    """Draw a token from each row's truncated distribution, with the Gumbel-max trick: int32 [B]."""
    V = logits.shape[-1]
    edges = truncation_kernel if by_kernel else truncation
    temperature, top_p, min_p = (rows.scalars[:, i : i + 1] for i in range(3))
    scaled = logits / jnp.where(temperature > 0, temperature, 1.0)
    k = jnp.where(rows.top_k > 0, jnp.minimum(rows.top_k, V), V)[:, None]
    kept = _when(
        flag["top_k"], lambda: scaled >= edges.kth_largest(scaled, k), lambda: jnp.ones(scaled.shape, jnp.bool_)
    )
    weights = jnp.where(kept, jnp.exp(scaled - row_max(scaled)), 0.0)
    probabilities = weights / row_sum(weights, alone=True)[:, None]
    kept, probabilities = _when(
        flag["shape"], lambda: _shape(scaled, kept, probabilities, rows), lambda: (kept, probabilities)
    )
    kept = _when(
        flag["top_p"],
        # A sum may round up to 1 before the last token: where all are wanted, all stay, beside other rows as alone.
        lambda: kept & ((top_p >= 1) | (probabilities >= edges.nucleus_edge(probabilities, top_p))),
        lambda: kept,
    )
    kept = kept & (probabilities >= min_p * jnp.max(probabilities, axis=-1, keepdims=True))
    kept = _when(flag["xtc"], lambda: _exclude_top(kept, probabilities, rows, positions), lambda: kept)

    def noise(seed: jax.Array, position: jax.Array) -> jax.Array:
        return jax.random.gumbel(jax.random.fold_in(_key(seed), position), (V,), jnp.float32)

    gumbel = jax.vmap(noise)(rows.seeds, positions)
    return jnp.argmax(jnp.where(kept, scaled + gumbel, -jnp.inf), axis=-1).astype(jnp.int32)


def _key(seed: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(seed, impl="threefry2x32")


def _shape(
    scaled: jax.Array, kept: jax.Array, probabilities: jax.Array, rows: SamplerRows
) -> tuple[jax.Array, jax.Array]:
    """`top_n_sigma` and `typical_p`: the tokens that are left, and their probabilities."""
    typical_p, sigmas = (rows.scalars[:, i : i + 1] for i in (6, 7))
    near = kept & ((sigmas == 0) | tokens_within_sigma(scaled, sigmas))
    shaped = jnp.where(typical_p < 1, typical_tokens(scaled, near, typical_p), near)
    left = jnp.where(shaped, probabilities, 0.0)
    is_used = (typical_p < 1) | (sigmas > 0)
    return shaped, jnp.where(is_used, left / row_sum(left)[:, None], probabilities)


_XTC_STREAM = 0x787463
"""Folded into the key, so that XTC's draws are not those of the tokens."""


def _exclude_top(kept: jax.Array, probabilities: jax.Array, rows: SamplerRows, positions: jax.Array) -> jax.Array:
    """XTC: the tokens that are left."""
    chance, threshold = (rows.scalars[:, i : i + 1] for i in (8, 9))

    def draw(seed: jax.Array, position: jax.Array) -> jax.Array:
        stream = jax.random.fold_in(_key(seed), _XTC_STREAM)
        return jax.random.uniform(jax.random.fold_in(stream, position), (), jnp.float32)

    left = jnp.where(kept, probabilities, 0.0)
    applies = jax.vmap(draw)(rows.seeds, positions)[:, None] < chance
    return jnp.where(applies, tokens_after_xtc(left / row_sum(left)[:, None], kept, threshold), kept)


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(jnp.maximum(x, LOWEST_LOGPROB), jnp.int32)


def _logprobs(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    shifted = logits - row_max(logits)
    logprobs = shifted - jnp.log(row_sum(jnp.exp(shifted)))[:, None]
    at = jnp.maximum(tokens, 0)[:, None]
    chosen = jnp.take_along_axis(logprobs, at, axis=-1)
    above = jnp.sum(logits > jnp.take_along_axis(logits, at, axis=-1), axis=-1, keepdims=True, dtype=jnp.int32)
    count = min(MAX_TOP_LOGPROBS, logits.shape[-1])
    top, ids = lax.top_k(logprobs, count)
    pad = ((0, 0), (0, MAX_TOP_LOGPROBS - count))
    most_likely = [jnp.pad(ids.astype(jnp.int32), pad), jnp.pad(_bits(top), pad)]
    parts = [tokens[:, None], _bits(chosen), *most_likely, 1 + above]
    return jnp.concatenate(parts, axis=-1)


def score_tokens(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """The log-probabilities of given tokens, packed as by `sample`.

    Args:
      logits: float32 [T, V], the model's unmodified logits.
      tokens: int32 [T], the tokens that follow.
    Returns: packed int32 [T, PACKED_WIDTH]; the token is NOT_NUMBERS where the logits are not finite.
    """
    is_number = jnp.isfinite(jnp.max(logits, axis=-1))
    return _logprobs(logits, jnp.where(is_number, tokens, NOT_NUMBERS))


def _no_logprobs(tokens: jax.Array) -> jax.Array:
    return jnp.zeros((tokens.shape[0], PACKED_WIDTH), jnp.int32).at[:, 0].set(tokens)


class Sampled(NamedTuple):
    """The token that a step chose for one row, on the host."""

    token: int
    logprob: float = 0.0
    top: tuple[tuple[int, float], ...] = ()
    """The most likely tokens with their log-probabilities, most likely first."""
    rank: int = 0
    """1 for the most likely token: one more than the number of tokens that are more likely; 0 if unknown."""


def unpack(row: np.ndarray, alternatives: int | None) -> Sampled:
    """Read one row of `packed`, int32 [PACKED_WIDTH].

    Args:
      alternatives: number of most likely tokens to read; None: only the token is set.
    """
    token = int(row[0])
    if alternatives is None:
        return Sampled(token)
    floats = row.view(np.float32)
    ids = row[2 : 2 + alternatives].tolist()
    values = floats[2 + MAX_TOP_LOGPROBS : 2 + MAX_TOP_LOGPROBS + alternatives].tolist()
    return Sampled(token, float(floats[1]), tuple(zip(ids, values, strict=True)), int(row[-1]))
