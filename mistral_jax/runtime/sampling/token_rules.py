"""Rules about tokens that depend on those before them: DRY, words that must not appear, and the earliest end.

The rows of a step find the tokens so far in `RuleRows.history`, on the device, so that the host is not waited for. What
the texts of a request mean in ids was decided on the host (`mistral_jax.text.token_rules`). Every result depends on its
own row alone, to the last bit.

Axis letters: B slots, R rows of a step, S tokens of a sequence, V vocabulary, N banned sequences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mistral_jax.runtime.sampling.params import (
    LONGEST_REPETITION,
    MAX_BANNED,
    MAX_BANNED_LENGTH,
    SamplingParams,
    TokenRules,
)

_ANY, _NONE = -1, -2
"""In a banned sequence: any token. Among the newest tokens: one that the model did not generate."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["history", "limits", "early", "breakers", "banned", "penalties"],
    meta_fields=[],
)
@dataclass(frozen=True)
class RuleRows:
    """The rules of each slot. All but `history` and `limits` are undefined for slots that `limits` says use none."""

    history: jax.Array  # int32 [B, S]: the tokens by position
    limits: jax.Array  # int32 [B, 4]: see `row_limits`
    early: jax.Array  # int32 [B, ceil(V / 32)]: bits of the tokens that are banned at first
    breakers: jax.Array  # int32 [B, ceil(V / 32)]: bits of the tokens that no repetition continues over
    banned: jax.Array  # int32 [B, N, L]: sequences whose last token must not follow the others; _ANY before the first
    penalties: jax.Array  # float32 [B, LONGEST_REPETITION + 1]: DRY's penalty by the length of the repetition

    @classmethod
    def allocate(cls, *, slots: int, vocab_size: int, length: int) -> RuleRows:
        words = -(-vocab_size // 32)
        return cls(
            history=jnp.zeros((slots, length), jnp.int32),
            limits=jnp.zeros((slots, 4), jnp.int32),
            early=jnp.zeros((slots, words), jnp.int32),
            breakers=jnp.zeros((slots, words), jnp.int32),
            banned=jnp.zeros((slots, MAX_BANNED, MAX_BANNED_LENGTH), jnp.int32),
            penalties=jnp.zeros((slots, LONGEST_REPETITION + 1), jnp.float32),
        )


class RuleRow(NamedTuple):
    """The rules of one sequence, as numpy arrays: a row of `RuleRows` without `history` and `limits`."""

    early: np.ndarray
    breakers: np.ndarray
    banned: np.ndarray
    penalties: np.ndarray


def row_limits(params: SamplingParams, prompt_length: int) -> np.ndarray:
    """int32 [4]: the position from which `RuleRows.early` is allowed; the completion's first position; the number of
    banned sequences; and the tokens that DRY looks back on."""
    rules = params.rules or TokenRules()
    last_n = params.dry_penalty_last_n if params.uses_dry else 0
    return np.array(
        [
            prompt_length + params.min_tokens if params.min_tokens else 0,
            prompt_length,
            len(rules.banned_sequences),
            np.iinfo(np.int32).max if last_n < 0 else last_n,
        ],
        np.int32,
    )


def history_row(prompt: Sequence[int], length: int) -> np.ndarray:
    """A row of `RuleRows.history` after `prompt`: int32 [length]."""
    history = np.zeros((length,), np.int32)
    history[: len(prompt)] = prompt
    return history


def rule_row(params: SamplingParams, *, vocab_size: int) -> RuleRow:
    """The rules of a sequence. `params.rules` must be set."""
    assert params.rules is not None
    banned = np.full((MAX_BANNED, MAX_BANNED_LENGTH), _ANY, np.int32)
    for row, sequence in zip(banned, params.rules.banned_sequences, strict=False):
        row[-len(sequence) :] = sequence
    penalties = np.zeros((LONGEST_REPETITION + 1,), np.float32)
    if params.uses_dry:
        lengths = np.arange(params.dry_allowed_length, LONGEST_REPETITION + 1)
        # Computed here: powers on a device differ in their last bits. Finite, so that some token can be chosen.
        powers = params.dry_multiplier * np.float64(params.dry_base) ** (lengths - params.dry_allowed_length)
        penalties[lengths] = np.minimum(powers, 1e30)
    return RuleRow(
        early=token_bits(params.rules.ends, vocab_size),
        breakers=token_bits(params.rules.breakers, vocab_size),
        banned=banned,
        penalties=penalties,
    )


def token_bits(tokens: Iterable[int], vocab_size: int) -> np.ndarray:
    """A set of tokens as bits: int32 [ceil(V / 32)]; bit t % 32 of word t // 32 is token t."""
    flags = np.zeros((-(-vocab_size // 32) * 32,), np.bool_)
    flags[list(tokens)] = True
    return np.packbits(flags, bitorder="little").view("<i4").astype(np.int32)


def apply_rules(
    logits: jax.Array, rules: RuleRows, positions: jax.Array, *, dry: jax.Array, bans: jax.Array, copies: int = 1
) -> jax.Array:
    """The logits after the rules of their rows.

    Args:
      logits: float32 [R * copies, V].
      rules: of at least the first R slots, which the rows belong to, `copies` times over.
      positions: int32 [R * copies], of the tokens to choose.
      dry, bans: bool scalars: whether any row has a DRY penalty; banned words or a least length.
      copies: static.
    """
    R = logits.shape[0] // copies
    own = jax.tree.map(lambda x: jnp.concatenate([x[:R]] * copies), rules)
    logits = lax.cond(dry, lambda: _dry(logits, own, positions), lambda: logits)
    return lax.cond(bans, lambda: _ban(logits, own, positions), lambda: logits)


def _dry(logits: jax.Array, rules: RuleRows, positions: jax.Array) -> jax.Array:
    """DRY: a token that would continue a repetition gets a penalty that grows with the length of the repetition.

    The repetition that token x would continue is the longest run of tokens before an earlier x that also ends the text.
    """
    history, last_n = rules.history, rules.limits[:, 3:4]
    R, S = history.shape
    rows, at = jnp.arange(R)[:, None], jnp.arange(S)[None]
    newest = positions[:, None] - 1
    first = jnp.maximum(newest + 1 - last_n, 0)
    breaks = _has(rules.breakers, history)

    def longer(state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        """Compare the token `k` places before index i with the one `k` places before the newest, for all i."""
        k, alive, lengths, shifted = state
        place = newest - k
        token = jnp.take_along_axis(history, jnp.maximum(place, 0), axis=1)
        breaks_here = jnp.take_along_axis(breaks, jnp.maximum(place, 0), axis=1)
        alive = alive & (shifted == token) & (at - k >= first) & (place >= first) & ~breaks_here
        return k + 1, alive, lengths + alive, jnp.roll(shifted, 1, axis=1)

    earlier = (at < newest) & (at >= first)
    start = (jnp.int32(0), earlier, jnp.zeros((R, S), jnp.int32), history)
    _, _, lengths, _ = lax.while_loop(lambda s: (s[0] < LONGEST_REPETITION) & jnp.any(s[1]), longer, start)
    following = jnp.roll(history, -1, axis=1)
    # Out of bounds, hence dropped, for tokens that continue nothing.
    continued = jnp.where((lengths > 0) & ~jnp.roll(breaks, -1, axis=1), following, logits.shape[1])
    longest = jnp.zeros(logits.shape, jnp.int32).at[rows, continued].max(lengths, mode="drop")
    return logits - jnp.take_along_axis(rules.penalties, longest, axis=1)


def _ban(logits: jax.Array, rules: RuleRows, positions: jax.Array) -> jax.Array:
    """Tokens that must not come next become impossible."""
    R, V = logits.shape
    until, completion_start, count = (column[:, None] for column in rules.limits.T[:3])
    early = jnp.right_shift(rules.early[:, :, None], jnp.arange(32)) & 1
    logits = jnp.where((early.reshape(R, -1)[:, :V] > 0) & (positions[:, None] < until), -jnp.inf, logits)

    N, L = rules.banned.shape[1:]
    places = positions[:, None] - 1 - jnp.arange(L - 2, -1, -1)
    newest = jnp.take_along_axis(rules.history, jnp.maximum(places, 0), axis=1)
    newest = jnp.where(places >= completion_start, newest, _NONE)
    before, last = rules.banned[:, :, :-1], rules.banned[:, :, -1]
    follows = jnp.all((before == _ANY) | (before == newest[:, None]), axis=-1) & (jnp.arange(N) < count)
    return logits.at[jnp.arange(R)[:, None], jnp.where(follows, last, V)].set(-jnp.inf, mode="drop")


def _has(bits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Whether each token is in its row's set: bits int32 [R, ceil(V / 32)], tokens int32 [R, S] -> bool [R, S]."""
    return (jnp.right_shift(jnp.take_along_axis(bits, tokens >> 5, axis=1), tokens & 31) & 1) > 0
