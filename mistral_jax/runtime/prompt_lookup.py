"""Speculative steps by looking up: tokens that came before may come again, as in edited, quoted or structured text.

A step proposes what followed the latest earlier place where the newest tokens of a row stand, runs the newest token and
the proposed ones at once, and samples after each of them:

    text        … the cat sat on the mat. Then the cat
    proposed                                          sat on the
    sampled                                           sat on a        "the" is dropped; the step gave three tokens

A sampled token is a function of the text before it, the request's seed and its position. So the next token is sampled
as ever, and as long as it is the proposed one, the logits after it are already there. Bits do not change either: up to
`FEW_TOKENS` tokens of a row are computed as one is. What wrong proposals have written to the cache is overwritten
before it is read.

All of it runs on the device, which has the tokens of every row: the host need not read one step before the next.

Axis letters: B slots, R rows of a step, S tokens of a sequence, K tokens of a row that run at once, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax

from mistral_jax.model.kv_cache import ReadPlan
from mistral_jax.runtime.mixing import AdaptedModel, Caches
from mistral_jax.runtime.sampling.sample import PACKED_WIDTH, Features
from mistral_jax.runtime.step import Forward, Rows, sample_rows

SHORTEST, LONGEST = 2, 4
"""Least and most tokens that must stand at an earlier place; the more there are, the better the place."""


@partial(jax.tree_util.register_dataclass, data_fields=["logits", "tokens", "counts", "weights"], meta_fields=[])
@dataclass(frozen=True)
class Proposed:
    """What a pass over proposed tokens computed, for `sample_proposed`."""

    logits: jax.Array
    """float32 [K, R, V]: after the newest token, and after each proposed one."""
    tokens: jax.Array
    """int32 [R, K]: the newest token and the proposed ones."""
    counts: jax.Array
    """int32 [R]: how many of these were run."""
    weights: jax.Array | None
    """float32 [R, M, A] of zeros: no scaling pass ran; None without adapters."""


def propose(history: jax.Array, newest: jax.Array, K: int) -> tuple[jax.Array, jax.Array]:
    """What may follow the newest token of each row.

    Args:
      history: int32 [R, S], the tokens by position.
      newest: int32 [R], the position of the newest token.
      K: static.
    Returns: int32 [R, K], the newest token and those proposed after it; int32 [R], how many of these there are.
    """
    S = history.shape[1]
    at = jnp.arange(S)[None]
    last = newest[:, None]
    shared = jnp.zeros(history.shape, jnp.int32)
    alike = at < last
    shifted = history
    for back in range(LONGEST):
        token = jnp.take_along_axis(history, jnp.maximum(last - back, 0), axis=1)
        alike = alike & (shifted == token) & (at >= back) & (last >= back)
        shared = shared + alike.astype(jnp.int32)
        shifted = jnp.roll(shifted, 1, axis=1)
    # The longest match, and of equal ones the latest.
    score = jnp.where(shared >= SHORTEST, shared * S + at, -1)
    place = jnp.argmax(score, axis=1)[:, None]
    found = jnp.max(score, axis=1) >= 0
    follows = place + jnp.arange(K)
    tokens = jnp.take_along_axis(history, jnp.minimum(follows, S - 1), axis=1)
    known = jnp.sum((follows <= last).astype(jnp.int32), axis=1)
    return tokens, jnp.where(found, known, 1)


def forward_proposed(
    model: AdaptedModel,
    caches: Caches,
    rows: Rows,
    active: jax.Array,
    counts: jax.Array,
    weights: jax.Array | None,
    *,
    K: int,
    plan: ReadPlan,
) -> tuple[Caches, Proposed]:
    """Run the newest token of each active row, and what is proposed after it.

    Args:
      caches: donated.
      active: bool [R].
      counts: int32 [R]: the most tokens that each row may get, from 1 to K.
      weights: float32 [R, M, A] of zeros; None without adapters.
      K, plan: static.
    """
    R = active.shape[0]
    positions = rows.positions[:R]
    with jax.named_scope("propose"):
        tokens, known = propose(rows.sampler.rules.history[:R], positions, K)
        counts = jnp.minimum(counts, known)
        steps = jnp.arange(K)
        # The first is the newest token itself, wherever the others come from.
        tokens = jnp.where(steps == 0, rows.tokens[:R, None], tokens)
    hidden, caches, _ = model(
        tokens,
        caches,
        jnp.arange(R),
        positions=positions[:, None] + steps,
        valid=active[:, None] & (steps < counts[:, None]),
        mixing=None if rows.mixing is None else rows.mixing.first(R),
        plan=plan,
        scaling=False,
    )
    logits = model.logits(hidden).transpose(1, 0, 2)
    return caches, Proposed(logits, tokens, counts, weights)


def sample_proposed(
    rows: Rows,
    active: jax.Array,
    proposed: Proposed,
    features: jax.Array,
    mask: jax.Array,
    *,
    repeat: bool,
    only: Features | None,
    by_kernel: bool,
) -> tuple[Rows, jax.Array, jax.Array]:
    """Sample after the newest token of each active row, and after proposed ones as long as they are what is sampled.

    Args: see `mistral_jax.runtime.step.sample_rows`; `rows` is donated.
    Returns: rows; `packed` int32 [K, R, PACKED_WIDTH], undefined from the number of each row's tokens on; and these
      numbers, int32 [R].
    """
    K, R = proposed.logits.shape[:2]
    tokens = proposed.tokens

    def more(state: tuple[jax.Array, Rows, jax.Array, jax.Array, jax.Array]) -> jax.Array:
        i, _, going, _, _ = state
        return (i < K) & jnp.any(going)

    def one(
        state: tuple[jax.Array, Rows, jax.Array, jax.Array, jax.Array],
    ) -> tuple[jax.Array, Rows, jax.Array, jax.Array, jax.Array]:
        i, rows, going, packed, emitted = state
        made = Forward(lax.dynamic_index_in_dim(proposed.logits, i, keepdims=False), proposed.weights)
        rows, sampled = sample_rows(rows, going, made, features, mask, repeat=repeat, only=only, by_kernel=by_kernel)
        following = lax.dynamic_index_in_dim(tokens, jnp.minimum(i + 1, K - 1), axis=1, keepdims=False)
        agrees = sampled[:, 0] == following
        packed = lax.dynamic_update_index_in_dim(packed, sampled, i, axis=0)
        return i + 1, rows, going & agrees & (i + 1 < proposed.counts), packed, emitted + going.astype(jnp.int32)

    state = (jnp.int32(0), rows, active, jnp.zeros((K, R, PACKED_WIDTH), jnp.int32), jnp.zeros((R,), jnp.int32))
    _, rows, _, packed, emitted = lax.while_loop(more, one, state)
    return rows, packed, emitted
