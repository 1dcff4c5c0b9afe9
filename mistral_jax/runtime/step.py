"""The programs of the runtime: admit a sequence, prefill a chunk of it, decode one token of every sequence.

They are pure functions over pytrees. State is donated and returned: never use a state again after a call.

- `prefill` runs all tokens of a prompt but the last, in chunks, into the slot's cache. It computes no logits.
- `score` does the same, and computes after each token the log-probability of the prompt's next one.
- `decode` runs the newest token of each row and samples the next. A prompt's last token is the first to decode, so the
  first completion token is sampled by the same program as all others.

They exist with and without X-LoRA's scaling pass; the rows of a call determine which one it needs (see
`mistral_jax.runtime.mixing`).

Axis letters: B slots, R rows of a decode step (the first R slots), T tokens of a chunk, V vocabulary, M scaling
columns, A adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import ReadPlan
from mistral_jax.runtime.mixing import AdaptedModel, Caches, MixingRows, RowMixing
from mistral_jax.runtime.sampling import SamplerRows, sample, score_tokens
from mistral_jax.runtime.token_rules import RuleRow


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


def admit(
    rows: Rows,
    slot: jax.Array,
    token: jax.Array,
    position: jax.Array,
    scalars: jax.Array,
    top_k: jax.Array,
    seed: jax.Array,
    recent: jax.Array,
    limits: jax.Array,
    mixing: RowMixing | None,
) -> Rows:
    """Give a slot to a new sequence.

    Args:
      rows: donated.
      slot, top_k: int32 scalars.
      token, position: int32 scalars: the prompt's last token and its position.
      scalars: float32 [10], see `mistral_jax.runtime.sampling.row_scalars`.
      seed: uint32 [2].
      recent: int32 [W], see `mistral_jax.runtime.sampling.recent_tokens`.
      limits: int32 [4], see `mistral_jax.runtime.token_rules.row_limits`.
      mixing: its adapters; None without adapters.
    """
    sampler = rows.sampler
    return replace(
        rows,
        tokens=rows.tokens.at[slot].set(token),
        positions=rows.positions.at[slot].set(position),
        sampler=SamplerRows(
            scalars=sampler.scalars.at[slot].set(scalars),
            top_k=sampler.top_k.at[slot].set(top_k),
            seeds=sampler.seeds.at[slot].set(seed),
            recent=sampler.recent.at[slot].set(recent),
            output_counts=sampler.output_counts.at[slot].set(0),
            bias=sampler.bias.at[slot].set(0.0),
            rules=replace(sampler.rules, limits=sampler.rules.limits.at[slot].set(limits)),
        ),
        mixing=None if rows.mixing is None or mixing is None else rows.mixing.admit(slot, mixing),
        speculation=None
        if rows.speculation is None
        else replace(rows.speculation, ready=rows.speculation.ready.at[slot].set(False)),
    )


def set_bias(rows: Rows, slot: jax.Array, bias: jax.Array) -> Rows:
    """Set a slot's bias, float32 [V], after `admit`. `rows` is donated."""
    return replace(rows, sampler=replace(rows.sampler, bias=rows.sampler.bias.at[slot].set(bias)))


def set_rules(rows: Rows, slot: jax.Array, row: RuleRow) -> Rows:
    """Set a slot's rules after `admit`. `rows` is donated."""
    rules = rows.sampler.rules
    own = {name: getattr(rules, name).at[slot].set(value) for name, value in row._asdict().items()}
    return replace(rows, sampler=replace(rows.sampler, rules=replace(rules, **own)))


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
      (see `mistral_jax.runtime.sampling.score_tokens`). Rows from `count` on are undefined.
    """
    hidden, caches, _ = _run_chunk(model, caches, mixing, slot, tokens[:-1], start, count, plan=plan, scaling=scaling)
    with jax.named_scope("score"):
        # Keep the axis of sequences, so that packed weights are multiplied by the method for many tokens.
        packed = score_tokens(model.logits(hidden)[0], tokens[1:])
    return caches, start + count, packed


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


def decode(
    model: AdaptedModel,
    caches: Caches,
    rows: Rows,
    active: jax.Array,
    features: jax.Array,
    *,
    plan: ReadPlan,
    repeat: bool,
    scaling: bool,
) -> tuple[Caches, Rows, jax.Array, jax.Array | None]:
    """Run one token of each active row and sample the next.

    Args:
      caches, rows: donated.
      active: bool [R]; the step runs the first R slots, R >= 2. Inactive rows do not change.
      features: bool [9], see `mistral_jax.runtime.sampling.Features`.
      plan, repeat: static.
      scaling: static; whether some row's adapter weights come from the classifier.
    Returns: caches, rows, `packed` int32 [R, PACKED_WIDTH] (see `mistral_jax.runtime.sampling.sample`), and, if
      `scaling`, the adapter weights float32 [R, M, A].
    """
    R = active.shape[0]
    positions = rows.positions[:R]
    mixing = None if rows.mixing is None else rows.mixing.first(R)
    hidden, caches, weights = model(
        rows.tokens[:R, None],
        caches,
        jnp.arange(R),
        positions=positions[:, None],
        valid=active[:, None],
        mixing=mixing,
        plan=plan,
        scaling=scaling,
    )
    sampler = rows.sampler.first(R)
    with jax.named_scope("sample"):
        chosen, packed = sample(model.logits(hidden[:, 0]), sampler, positions + 1, features, repeat=repeat)
    used = None if weights is None else weights[:, 0]
    return caches, advance(rows, active, chosen, used), packed, used


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
