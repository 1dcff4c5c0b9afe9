"""Giving a slot to a new sequence: its row for decode steps. The cache needs nothing; prefill writes over it.

Axis letters: S tokens of a sequence, V vocabulary, W tokens that the repetition penalty looks back at.
"""

from __future__ import annotations

from dataclasses import replace

import jax

from mistral_jax.runtime.mixing import RowMixing
from mistral_jax.runtime.sampling.sample import SamplerRows
from mistral_jax.runtime.sampling.token_rules import RuleRow
from mistral_jax.runtime.step import Rows


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
    history: jax.Array,
    mixing: RowMixing | None,
) -> Rows:
    """Give a slot to a new sequence.

    Args:
      rows: donated.
      slot, top_k: int32 scalars.
      token, position: int32 scalars: the prompt's last token and its position.
      scalars: float32 [10], see `mistral_jax.runtime.sampling.sample.row_scalars`.
      seed: uint32 [2].
      recent: int32 [W], see `mistral_jax.runtime.sampling.sample.recent_tokens`.
      limits: int32 [4], see `mistral_jax.runtime.sampling.token_rules.row_limits`.
      history: int32 [S], the prompt and what follows; see `mistral_jax.runtime.sampling.token_rules.RuleRows`.
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
            rules=replace(
                sampler.rules,
                limits=sampler.rules.limits.at[slot].set(limits),
                history=sampler.rules.history.at[slot].set(history),
            ),
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
