"""Tokens that a decode step runs together: the bits of running them one after another."""

from __future__ import annotations

import numpy as np

from mistral_jax.runtime.calls import RunnerState
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.step import RUN_TOKENS
from tests.mistral_jax.runtime.test_several import EACH_FORM, windowed

PROMPT = tuple(range(3, 40))
TOKENS = tuple(range(50, 50 + RUN_TOKENS))
PARAMS = SamplingParams(temperature=0.0, seed=1)


def admitted(runner: Runner, state: RunnerState, slot: int, prompt: tuple[int, ...]) -> RunnerState:
    state = runner.admit(state, slot, prompt, PARAMS)
    for chunk in runner.chunks(len(prompt)):
        state = runner.prefill(state, slot, prompt, chunk).state
    return state


@EACH_FORM
def test_logits_after_a_run_are_those_after_single_steps(form: str, dtype: str) -> None:
    runner = Runner(windowed(form, dtype), slots=4, length=128, row_buckets=(4,))
    expected = None
    state = admitted(runner, runner.new_state(), 1, PROMPT)
    for count in range(len(TOKENS)):
        # The slot's newest token is the one to run; what it would have sampled before does not matter.
        state = runner.admit(state, 1, (*PROMPT, *TOKENS[:count]), PARAMS)
        forwarded = runner.forward(state, [1], longest=128)
        state, expected = forwarded.state, np.asarray(forwarded.made.logits)[1]
    state = admitted(runner, runner.new_state(), 2, PROMPT)
    run = (PROMPT[-1], *TOKENS[:-1])
    forwarded = runner.forward(state, [2], longest=128, runs={2: run})
    np.testing.assert_array_equal(np.asarray(forwarded.made.logits)[2], expected)
