"""Rows before and after a step, without a model."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.runtime.admission import admit, set_bias, set_rules
from mistral_jax.runtime.mixing import MixingRows, RowMixing
from mistral_jax.runtime.sampling.params import SamplingParams, TokenRules
from mistral_jax.runtime.sampling.sample import recent_tokens, row_scalars, seed_words
from mistral_jax.runtime.sampling.token_rules import history_row, row_limits, rule_row
from mistral_jax.runtime.step import Rows, SpeculationRows, advance
from tests.mistral_jax.tiny_adapters import CONFIG

SLOTS, W, LENGTH = 4, 5, 19


def rows(**others: object) -> Rows:
    return Rows.allocate(CONFIG, slots=SLOTS, repeat_last_n=W, length=LENGTH, **others)  # type: ignore[arg-type]


def admitted(before: Rows, slot: int, prompt: tuple[int, ...], mixing: RowMixing | None = None) -> Rows:
    params = SamplingParams(seed=9, temperature=0.5, top_k=7)
    return admit(
        before,
        jnp.int32(slot),
        jnp.int32(prompt[-1]),
        jnp.int32(len(prompt) - 1),
        jnp.asarray(row_scalars(params)),
        jnp.int32(params.top_k),
        jnp.asarray(seed_words(9)),
        jnp.asarray(recent_tokens(prompt, W, CONFIG.vocab_size)),
        jnp.asarray(row_limits(params, len(prompt))),
        jnp.asarray(history_row(prompt, LENGTH)),
        mixing,
    )


def test_admit_changes_its_slot_only_and_forgets_the_former_tenant() -> None:
    before = rows()
    before = replace(before, sampler=replace(before.sampler, output_counts=before.sampler.output_counts + 3))
    after = admitted(set_bias(before, jnp.int32(1), jnp.ones((CONFIG.vocab_size,))), 1, (4, 5, 6))
    assert (after.tokens.tolist(), after.positions.tolist()) == ([0, 6, 0, 0], [0, 2, 0, 0])
    assert after.sampler.top_k.tolist()[1] == 7
    assert not np.asarray(after.sampler.output_counts[1]).any()
    assert not np.asarray(after.sampler.bias[1]).any()
    assert (np.asarray(after.sampler.output_counts[2]) == 3).all()


def test_advance_moves_active_rows_and_leaves_the_others_as_they_are() -> None:
    before = admitted(admitted(rows(), 0, (4, 5, 6)), 1, (7, 8))
    active, chosen = jnp.array([True, False]), jnp.array([11, 12])
    after = advance(before, active, chosen, None)
    assert (after.tokens.tolist(), after.positions.tolist()) == ([11, 8, 0, 0], [3, 1, 0, 0])
    counts = np.asarray(after.sampler.output_counts)
    assert (counts[0, 11], counts.sum()) == (1, 1)
    # The token at position p is remembered at p % W.
    assert after.sampler.recent[0, 3 % W] == 11
    np.testing.assert_array_equal(after.sampler.recent[1:], before.sampler.recent[1:])
    assert after.sampler.rules.history[0, 3] == 11
    np.testing.assert_array_equal(after.sampler.rules.history[1:], before.sampler.rules.history[1:])


def test_the_rules_of_a_slot_know_its_prompt_until_another_sequence_comes() -> None:
    params = SamplingParams(min_tokens=2, rules=TokenRules(ends=(2,)))
    row = rule_row(params, vocab_size=CONFIG.vocab_size)
    after = set_rules(admitted(rows(), 1, (4, 5, 6)), jnp.int32(1), row)
    history = np.zeros((SLOTS, LENGTH), np.int32)
    history[1, :3] = 4, 5, 6
    np.testing.assert_array_equal(after.sampler.rules.history, history)
    assert after.sampler.rules.early[1, 0] == 1 << 2
    assert after.sampler.rules.limits[1].tolist() == [0, 3, 0, 0]
    again = admitted(after, 1, (7,))
    assert again.sampler.rules.limits[1].tolist() == [0, 1, 0, 0]


def test_a_row_without_numbers_keeps_its_token() -> None:
    before = admitted(rows(), 0, (4, 5, 6))
    after = advance(before, jnp.array([True, True]), jnp.array([-1, 3]), None)
    assert after.tokens.tolist()[:2] == [6, 3]


@pytest.mark.parametrize(("freeze_at", "frozen"), [(1, True), (2, True), (3, False)])
def test_weights_are_kept_from_the_position_on_that_was_asked_for(freeze_at: int, frozen: bool) -> None:
    sizes = {"slots": SLOTS, "columns": 2, "adapters": 3}
    mixing = RowMixing(jnp.zeros((3,)), jnp.bool_(True), jnp.int32(freeze_at))
    before = admitted(
        rows(mixing=MixingRows.allocate(**sizes), speculation=SpeculationRows.allocate(**sizes)), 0, (4, 5, 6), mixing
    )
    weights = jax.random.uniform(jax.random.key(0), (2, 2, 3))
    after = advance(before, jnp.array([True, False]), jnp.array([1, 2]), weights)
    assert after.mixing is not None
    assert bool(after.mixing.live[0]) is not frozen
    np.testing.assert_array_equal(after.mixing.weights[0], weights[0] if frozen else np.zeros((2, 3)))
    assert not np.asarray(after.mixing.weights[1:]).any()


def test_what_was_speculated_belongs_to_one_token() -> None:
    sizes = {"slots": SLOTS, "columns": 1, "adapters": 2}
    before = rows(mixing=MixingRows.allocate(**sizes), speculation=SpeculationRows.allocate(**sizes))
    assert before.speculation is not None
    before = replace(before, speculation=replace(before.speculation, ready=jnp.ones((SLOTS,), jnp.bool_)))
    after = advance(before, jnp.array([True, False, True]), jnp.array([1, 2, 3]), None)
    assert after.speculation is not None
    assert after.speculation.ready.tolist() == [False, True, False, True]
    again = admitted(after, 3, (5,), RowMixing(jnp.zeros((2,)), jnp.bool_(True), jnp.int32(9)))
    assert again.speculation is not None
    assert again.speculation.ready.tolist() == [False, True, False, False]
