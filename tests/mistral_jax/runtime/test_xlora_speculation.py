"""Speculative steps of X-LoRA: what they leave in the rows, and when they give a token. That they change no bit of any
request is tested in `tests/mistral_jax/adapters/test_xlora.py`."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.calls import RunnerState, Stepped
from mistral_jax.runtime.mixing import Caches
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from mistral_jax.runtime.step import Rows, SpeculationRows
from tests.mistral_jax.adapters.test_xlora import STEPS, TEXT, XLORA, answers, runner
from tests.mistral_jax.tiny_adapters import xlora

pytestmark = pytest.mark.slow(by="file")

GREEDY = SamplingParams(temperature=0.0, seed=3)


@pytest.fixture(scope="module")
def run() -> Runner:
    return runner("float32", slots=3)


def admitted(run: Runner, *choices: AdapterChoice) -> RunnerState:
    """The same prompt in a slot for each choice."""
    state, prompt = run.new_state(), TEXT[:20]
    for slot, choice in enumerate(choices):
        state = run.admit(state, slot, prompt, GREEDY, choice)
        for chunk in run.chunks(len(prompt)):
            state = run.prefill(state, slot, prompt, chunk, scaling=choice.xlora).state
    return state


def stepped(run: Runner, state: RunnerState, *slots: int) -> Stepped:
    return run.decode(state, slots, Features(), longest=40, scaling=True, speculative=True)


def speculation(state: RunnerState) -> SpeculationRows:
    assert state.rows.speculation is not None
    return state.rows.speculation


def test_a_row_gives_no_token_before_its_own_scaling_pass_and_others_give_one_in_every_step(run: Runner) -> None:
    state = admitted(run, XLORA, BASE, AdapterChoice(weights=((1, 0.5),)))
    state, first, _, given = stepped(run, state, 0, 1, 2)
    assert given is not None
    assert given.tolist() == [False, True, True]
    assert state.rows.positions.tolist() == [19, 20, 20]
    assert speculation(state).ready.tolist() == [True, False, False]
    base_token = int(np.asarray(first)[1, 0])
    # The scaling pass is one of the base model: its guess is the token that the base request got.
    assert int(speculation(state).guesses[0]) == base_token
    state, _, _, given = stepped(run, state, 0, 1, 2)
    assert given is not None
    assert given.tolist() == [True, True, True]


def test_a_wrong_guess_costs_a_step_and_changes_no_token(run: Runner) -> None:
    state = stepped(run, admitted(run, XLORA), 0).state
    rows = speculation(state)
    right = int(np.asarray(stepped(run, RunnerState(*_copied(state)), 0).packed)[0, 0])
    wrong = replace(rows, guesses=rows.guesses.at[0].set((right + 1) % run.config.vocab_size))
    state, packed, _, given = stepped(run, replace(state, rows=replace(state.rows, speculation=wrong)), 0)
    assert given is not None
    assert (int(np.asarray(packed)[0, 0]), given.tolist()[:1]) == (right, [True])
    assert speculation(state).ready.tolist()[:1] == [False]
    state, _, _, given = stepped(run, state, 0)
    assert given is not None
    assert given.tolist()[:1] == [False]
    assert speculation(state).ready.tolist()[:1] == [True]


def test_rows_that_take_no_part_stay_as_they_are(run: Runner) -> None:
    state = stepped(run, admitted(run, XLORA, XLORA), 0, 1).state
    before = [np.asarray(x[1]) for x in (state.rows.tokens, state.rows.positions, *_fields(speculation(state)))]
    state = stepped(run, state, 0).state
    after = [np.asarray(x[1]) for x in (state.rows.tokens, state.rows.positions, *_fields(speculation(state)))]
    for one, other in zip(before, after, strict=True):
        np.testing.assert_array_equal(one, other)


def _fields(rows: SpeculationRows) -> tuple[jnp.ndarray, ...]:
    return rows.ready, rows.weights, rows.guesses


def _copied(state: RunnerState) -> tuple[Caches, Rows]:
    return jax.tree.map(jnp.copy, (state.caches, state.rows))


def test_speculation_up_to_the_last_position() -> None:
    """The guess after the last token has no place, and must not overwrite the first."""
    run = runner("float32", slots=2, length=128)
    prompt = TEXT[: 128 - STEPS]
    expected = answers(run, [prompt], [XLORA])
    np.testing.assert_array_equal(answers(run, [prompt], [XLORA], speculative=(True,))[0], expected[0])


def test_speculation_gives_a_token_a_sweep_where_the_guess_is_right() -> None:
    """With a factor of zero the mixture is the base model, so every guess is right."""
    run = runner("float32", slots=2, xlora=xlora(global_scaling_weight=0.0))
    params, prompt = SamplingParams(temperature=0.9, seed=3), TEXT[:20]
    state = run.admit(run.new_state(), 0, prompt, params, XLORA)
    for chunk in run.chunks(len(prompt)):
        state = run.prefill(state, 0, prompt, chunk, scaling=True).state
    emitted: list[bool] = []
    for step in range(10):
        state, _, _, given = run.decode(
            state, [0], Features.of(params), longest=21 + step, scaling=True, speculative=True
        )
        assert given is not None
        emitted.append(bool(given[0]))
    assert emitted == [False] + [True] * 9
