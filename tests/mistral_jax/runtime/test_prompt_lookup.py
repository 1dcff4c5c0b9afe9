"""Steps that look up proposals: the tokens, log-probabilities and state of single steps, whatever is proposed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.runtime.prompt_lookup import LONGEST, SHORTEST, propose
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from tests.mistral_jax.runtime.test_several import EACH_FORM, windowed

REPEATED = (*range(5, 30), *range(5, 30), 5, 6, 7)
S, K = 24, 5
_propose = jax.jit(propose, static_argnames="K")


def expected(text: list[int]) -> list[int]:
    """As the module says, in a loop."""
    best, place = SHORTEST - 1, None
    for at in range(len(text) - 1):
        shared = 0
        while shared < min(LONGEST, at + 1) and text[at - shared] == text[-1 - shared]:
            shared += 1
        if shared >= max(best, SHORTEST):
            best, place = shared, at
    return text[-1:] if place is None else text[place : place + K]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=S), min_size=3, max_size=3))
def test_proposed_is_what_followed_the_best_earlier_place(texts: list[list[int]]) -> None:
    history = np.full((3, S), 7, np.int32)
    for row, text in zip(history, texts, strict=True):
        row[: len(text)] = text
    newest = np.array([len(text) - 1 for text in texts], np.int32)
    tokens, counts = map(np.asarray, _propose(history, newest, K=K))
    for text, row, count in zip(texts, tokens, counts, strict=True):
        assert [text[-1], *row[1:count].tolist()] == [text[-1], *expected(text)[1:]], text


PARAMS = [
    # It cannot but repeat itself.
    SamplingParams(temperature=0.0, seed=1, logprobs=3, logit_bias={9: 60.0}),
    SamplingParams(temperature=0.6, top_p=0.9, top_k=5, seed=2, logprobs=5, repetition_penalty=1.1),
]


@pytest.mark.slow(by="form")
@EACH_FORM
@pytest.mark.parametrize("slots", [[0], [1], [0, 1]])
def test_a_step_gives_what_single_steps_give(form: str, dtype: str, slots: list[int]) -> None:
    runner = Runner(windowed(form, dtype), slots=4, length=256, row_buckets=(2, 4), chunks=(16, 64))
    prompts = [REPEATED, (3, 4, 5)]
    features = Features()
    for params in PARAMS:
        features |= Features.of(params)

    def admitted():
        state = runner.new_state()
        for slot in slots:
            state = runner.admit(state, slot, prompts[slot], PARAMS[slot])
            for chunk in runner.chunks(len(prompts[slot])):
                state = runner.prefill(state, slot, prompts[slot], chunk).state
        return state

    state, count = admitted(), 40
    wanted: dict[int, list[np.ndarray]] = {slot: [] for slot in slots}
    for step in range(count):
        stepped = runner.decode(state, slots, features, longest=60 + step)
        state = stepped.state
        for slot in slots:
            wanted[slot].append(np.asarray(stepped.packed)[slot])
    state, accepted = admitted(), 0
    found: dict[int, list[np.ndarray]] = {slot: [] for slot in slots}
    rows = runner.lookup_rows(slots)
    assert rows is not None
    while min(map(len, found.values())) < count:
        most = [min(runner.lookups[rows], max(count - len(found[slot]), 1)) for slot in slots]
        stepped = runner.look_up(state, slots, most, features, longest=200)
        state = stepped.state
        for slot in slots:
            got = int(np.asarray(stepped.emitted)[slot])
            assert 1 <= got <= runner.lookups[rows]
            accepted += got - 1
            found[slot] += list(np.asarray(stepped.packed)[:got, slot])
        # Single steps may come between.
        stepped = runner.decode(state, slots, features, longest=200)
        state = stepped.state
        for slot in slots:
            found[slot].append(np.asarray(stepped.packed)[slot])
    for slot in slots:
        np.testing.assert_array_equal(found[slot][:count], wanted[slot])
    assert accepted > 10 or 0 not in slots
    assert jnp.all(state.rows.positions[jnp.array(slots)] > 0)
