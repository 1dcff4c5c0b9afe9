"""The programs of the runtime: prefill a chunk of a sequence, decode a token of every sequence.

They are pure functions over pytrees. State is donated and returned: never use a state again after a call.

- `prefill` runs all tokens of a prompt but the last, in chunks, into the slot's cache. It computes no logits.
- `score` does the same, and computes after each token the log-probability of the prompt's next one.
- `embed` runs all tokens of a prompt, and pools their hidden states.
- `forward` and `sample_rows` are a decode step: the first runs the newest token of each row, the second samples the
  next. They are two programs so that the host can still compute masks of allowed tokens while the first one runs. A
  prompt's last token is the first to decode, so the first completion token is sampled as all others are.
- `several` is a few decode steps in one program, so that the host works once for all of them.
- `append` gives rows tokens that need no sampling, because a constraint left no choice; the next `forward` runs them
  all at once.

They exist with and without X-LoRA's scaling pass; the rows of a call determine which one it needs (see
`mistral_jax.runtime.mixing`).

Axis letters: B slots, R rows of a decode step (the first R slots), T tokens of a chunk, K tokens of a run, V
vocabulary, M scaling columns, A adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import ReadPlan
from mistral_jax.quant.product import FEW_TOKENS
from mistral_jax.runtime.mixing import AdaptedModel, Caches, MixingRows
from mistral_jax.runtime.sampling.sample import PACKED_WIDTH, Features, SamplerRows, sample, score_tokens

RUN_TOKENS = FEW_TOKENS
"""K: most tokens of a row that a forward pass runs at once, besides prefill."""

SEVERAL = 4
"""Decode steps of a program of several."""


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "positions", "sampler", "mixing", "speculation"],
    meta_fields=[],
)
@dataclass(frozen=True)
class Rows:
    """The state of each slot for decode steps, besides the cache."""

    tokens: jax.Array  # int32 [B]: the newest token, not yet run
    positions: jax.Array  # int32 [B]: its position
    sampler: SamplerRows
    mixing: MixingRows | None = None
    """None without adapters."""
    speculation: SpeculationRows | None = None
    """None without speculative steps."""

    @classmethod
    def allocate(
        cls,
        config: MistralConfig,
        *,
        slots: int,
        repeat_last_n: int,
        length: int,
        mixing: MixingRows | None = None,
        speculation: SpeculationRows | None = None,
    ) -> Rows:
        sampler = SamplerRows.allocate(
            slots=slots, vocab_size=config.vocab_size, repeat_last_n=repeat_last_n, length=length
        )
        # Two arrays, not one twice: each is donated.
        return cls(jnp.zeros((slots,), jnp.int32), jnp.zeros((slots,), jnp.int32), sampler, mixing, speculation)


@partial(jax.tree_util.register_dataclass, data_fields=["ready", "weights", "guesses"], meta_fields=[])
@dataclass(frozen=True)
class SpeculationRows:
    """What speculative steps computed for each slot's newest token (see `mistral_jax.runtime.xlora_speculation`)."""

    ready: jax.Array
    """bool [B]: whether the newest token has had its scaling pass. The other fields are undefined where it has not."""
    weights: jax.Array
    """float32 [B, M, A]: the newest token's adapter weights."""
    guesses: jax.Array
    """int32 [B]: the guessed token after it."""

    @classmethod
    def allocate(cls, *, slots: int, columns: int, adapters: int) -> SpeculationRows:
        return cls(
            jnp.zeros((slots,), jnp.bool_),
            jnp.zeros((slots, columns, adapters), jnp.float32),
            jnp.zeros((slots,), jnp.int32),
        )


def prefill(
    model: AdaptedModel,
    caches: Caches,
    mixing: MixingRows | None,
    slot: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    plan: ReadPlan,
    scaling: bool,
) -> tuple[Caches, jax.Array, jax.Array | None]:
    """Run a chunk of one prompt.

    Args:
      caches: donated.
      mixing: of all slots.
      slot: int32 scalar.
      tokens: int32 [T]; the first `count` are real, the rest padding.
      start: int32 scalar, position of the first token.
      plan: static.
      scaling: static; whether the slot's adapter weights come from the classifier.
    Returns: caches; int32 scalar, the position after the chunk, which becomes ready with the caches (these cannot be
      waited for, as the next call donates them); and, if `scaling`, the adapter weights float32 [T, M, A].
    """
    _, caches, weights = _run_chunk(model, caches, mixing, slot, tokens, start, count, plan=plan, scaling=scaling)
    return caches, start + count, None if weights is None else weights[0]


def score(
    model: AdaptedModel,
    caches: Caches,
    mixing: MixingRows | None,
    slot: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    plan: ReadPlan,
    scaling: bool,
) -> tuple[Caches, jax.Array, jax.Array]:
    """Run a chunk of one prompt as `prefill` does, and compute the log-probability of each following token.

    Args: see `prefill`, except
      tokens: int32 [T + 1]: the chunk's tokens and the one after it; the first `count` are run.
    Returns: caches; the position after the chunk; and `packed` int32 [T, PACKED_WIDTH], whose row i scores token i + 1
      (see `mistral_jax.runtime.sampling.sample.score_tokens`). Rows from `count` on are undefined.
    """
    hidden, caches, _ = _run_chunk(model, caches, mixing, slot, tokens[:-1], start, count, plan=plan, scaling=scaling)
    with jax.named_scope("score"):
        # Keep the axis of sequences, so that packed weights are multiplied by the method for many tokens.
        packed = score_tokens(model.logits(hidden)[0], tokens[1:])
    return caches, start + count, packed


def embed(
    model: AdaptedModel,
    caches: Caches,
    mixing: MixingRows | None,
    slot: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    plan: ReadPlan,
    scaling: bool,
) -> tuple[Caches, jax.Array, jax.Array]:
    """Run a chunk of one prompt as `prefill` does, and pool the hidden states of its tokens after the final norm.

    Args: see `prefill`.
    Returns: caches; the position after the chunk; and float32 [2, D]: the sum over the chunk's tokens, and the last
      one's.
    """
    hidden, caches, _ = _run_chunk(model, caches, mixing, slot, tokens, start, count, plan=plan, scaling=scaling)
    with jax.named_scope("pool"):
        states = hidden[0].astype(jnp.float32)  # [T, D]
        real = jnp.arange(tokens.shape[0]) < count
        total = jnp.sum(jnp.where(real[:, None], states, 0.0), axis=0)
        last = lax.dynamic_index_in_dim(states, jnp.maximum(count - 1, 0), keepdims=False)
    return caches, start + count, jnp.stack([total, last])


def _run_chunk(
    model: AdaptedModel,
    caches: Caches,
    mixing: MixingRows | None,
    slot: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    plan: ReadPlan,
    scaling: bool,
) -> tuple[jax.Array, Caches, jax.Array | None]:
    """Args: see `prefill`. Returns: see `AdaptedModel.__call__`."""
    steps = jnp.arange(tokens.shape[0])
    return model(
        tokens[None],
        caches,
        slot[None],
        positions=(start + steps)[None],
        valid=(steps < count)[None],
        mixing=None if mixing is None else mixing.slot(slot),
        plan=plan,
        scaling=scaling,
    )


@partial(jax.tree_util.register_dataclass, data_fields=["logits", "weights", "next_weights"], meta_fields=[])
@dataclass(frozen=True)
class Forward:
    """What a forward pass of R rows computed, for `sample_rows`."""

    logits: jax.Array
    """float32 [R, V]; of a speculative pass [2R, V]: those of the newest tokens, then those of the guesses."""
    weights: jax.Array | None = None
    """float32 [R, M, A]: the adapter weights of the newest tokens; None if the scaling pass did not run."""
    next_weights: jax.Array | None = None
    """float32 [R, M, A]: the adapter weights of the guesses; only of a speculative pass."""


def forward(
    model: AdaptedModel,
    caches: Caches,
    rows: Rows,
    active: jax.Array,
    run: Run | None,
    *,
    plan: ReadPlan,
    scaling: bool,
) -> tuple[Caches, Forward]:
    """Run the newest token of each active row, or the run of tokens that ends with it.

    Args:
      caches: donated.
      active: bool [R]; the step runs the first R slots, R >= 2. The others do not change.
      run: None: one token of each row.
      plan: static.
      scaling: static; whether some row's adapter weights come from the classifier.
    """
    R = active.shape[0]
    tokens, positions, valid = rows.tokens[:R, None], rows.positions[:R, None], active[:, None]
    if run is not None:
        steps = jnp.arange(run.tokens.shape[1])
        valid = valid & (steps < run.counts[:, None])
        tokens = jnp.where(run.counts[:, None] > 1, run.tokens, tokens)
        positions = positions - (run.counts[:, None] - 1) + steps
    hidden, caches, weights = model(
        tokens,
        caches,
        jnp.arange(R),
        positions=positions,
        valid=valid,
        mixing=None if rows.mixing is None else rows.mixing.first(R),
        plan=plan,
        scaling=scaling,
    )
    if run is None:
        hidden, weights = hidden[:, 0], None if weights is None else weights[:, 0]
    else:
        hidden, weights = _at(hidden, run.counts - 1), None if weights is None else _at(weights, run.counts - 1)
    return caches, Forward(model.logits(hidden), weights)


def _at(x: jax.Array, index: jax.Array) -> jax.Array:
    """[R, T, ...] -> [R, ...]: each row's entry at its index."""
    return x[jnp.arange(x.shape[0]), index]


@partial(jax.tree_util.register_dataclass, data_fields=["tokens", "counts"], meta_fields=[])
@dataclass(frozen=True)
class Run:
    """Tokens that a step runs at once in some rows, because a constraint left no choice."""

    tokens: Any
    """int32 [R, K], on the host or the device: the first `counts` of each row are real. The first is the newest token
    of the row, which was sampled; the others were not."""
    counts: Any
    """int32 [R], from 1 to K. With 1 the row's token need not be given."""

    @classmethod
    def empty(cls, R: int) -> Run:
        """One token for each row, on the host."""
        return cls(np.zeros((R, RUN_TOKENS), np.int32), np.ones((R,), np.int32))


def append(rows: Rows, active: jax.Array, run: Run) -> Rows:
    """Append the tokens of a run that were not sampled, so that the last one is the row's newest token.

    Args:
      rows: donated.
      active: bool [R].
    """

    def one(i: jax.Array, rows: Rows) -> Rows:
        return advance(rows, active & (i < run.counts), run.tokens[:, i], None)

    return lax.fori_loop(1, run.tokens.shape[1], one, rows)


def sample_rows(
    rows: Rows,
    active: jax.Array,
    made: Forward,
    features: jax.Array,
    mask: jax.Array,
    *,
    repeat: bool,
    only: Features | None,
    by_kernel: bool,
) -> tuple[Rows, jax.Array]:
    """Sample the next token of each active row.

    Args:
      rows: donated.
      active: bool [R]. Others do not change: the forward pass of a row that was run but is not sampled can be repeated.
      features: bool [10], see `mistral_jax.runtime.sampling.sample.Features`.
      mask: int32 [R, ceil(V / 32)], see `mistral_jax.runtime.sampling.sample`.
      repeat, only, by_kernel: static; see there.
    Returns: rows, and `packed` int32 [R, PACKED_WIDTH] (see `mistral_jax.runtime.sampling.sample`).
    """
    R = active.shape[0]
    sampler = rows.sampler.first(R)
    with jax.named_scope("sample"):
        chosen, packed = sample(
            made.logits, sampler, rows.positions[:R] + 1, features, mask, repeat=repeat, only=only, by_kernel=by_kernel
        )
    return advance(rows, active, chosen, made.weights), packed


def several(
    forward: Callable[[Caches, Rows, jax.Array], tuple[Caches, Forward]],
    sample: Callable[[Rows, jax.Array, Forward], tuple[Rows, jax.Array]],
    caches: Caches,
    rows: Rows,
    counts: jax.Array,
) -> tuple[Caches, Rows, jax.Array]:
    """Run `SEVERAL` decode steps, one after another.

    Args:
      forward: as of the module, from caches, rows and which are active.
      sample: as `sample_rows`, from rows, which are active, and the forward pass.
      caches, rows: donated.
      counts: int32 [R], from 0 to `SEVERAL`: the tokens that each row gets.
    Returns: caches, rows, and `packed` int32 [SEVERAL, R, PACKED_WIDTH], undefined from each row's count on.
    """

    def one(i: jax.Array, state: tuple[Caches, Rows, jax.Array]) -> tuple[Caches, Rows, jax.Array]:
        caches, rows, packed = state
        active = i < counts
        caches, made = forward(caches, rows, active)
        rows, sampled = sample(rows, active, made)
        return caches, rows, packed.at[i].set(sampled)

    packed = jnp.zeros((SEVERAL, counts.shape[0], PACKED_WIDTH), jnp.int32)
    return lax.fori_loop(0, SEVERAL, one, (caches, rows, packed))


def advance(rows: Rows, active: jax.Array, chosen: jax.Array, weights: jax.Array | None) -> Rows:
    """The rows after a step.

    Args:
      active: bool [R]: the rows that sampled a token.
      chosen: int32 [R]: the sampled tokens; negative where the logits were not finite.
      weights: float32 [R, M, A], the adapter weights of the step; None if the classifier did not run.
    """
    R = active.shape[0]
    positions = rows.positions[:R]
    token = jnp.where(active & (chosen >= 0), chosen, rows.tokens[:R])
    slots = jnp.arange(R)
    # Out of bounds, hence dropped, for rows that are not active.
    stored = jnp.where(active, token, rows.sampler.output_counts.shape[1])
    index = jnp.where(active, (positions + 1) % rows.sampler.recent.shape[1], rows.sampler.recent.shape[1])
    rules = rows.sampler.rules
    place = jnp.where(active, positions + 1, rules.history.shape[1])
    mixing = rows.mixing
    if mixing is not None and weights is not None:
        mixing = mixing.freeze(weights, positions, active)
    speculation = rows.speculation
    if speculation is not None:
        # What was speculated belongs to the previous token.
        speculation = replace(speculation, ready=speculation.ready.at[:R].set(speculation.ready[:R] & ~active))
    return replace(
        rows,
        tokens=rows.tokens.at[:R].set(token),
        positions=rows.positions.at[:R].add(active.astype(jnp.int32)),
        sampler=replace(
            rows.sampler,
            recent=rows.sampler.recent.at[slots, index].set(token, mode="drop"),
            output_counts=rows.sampler.output_counts.at[slots, stored].add(1, mode="drop"),
            rules=replace(rules, history=rules.history.at[slots, place].set(token, mode="drop")),
        ),
        mixing=mixing,
        speculation=speculation,
    )
