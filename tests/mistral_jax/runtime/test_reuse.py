"""What sharing prompts rests on: the cache holds the same bits for a token, in whichever chunk or step it was run."""

from __future__ import annotations

import numpy as np
import pytest

from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import RunnerState
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from tests.mistral_jax.runtime.test_several import EACH_FORM, windowed

LENGTH = 300
PARAMS = SamplingParams(temperature=0.0, seed=1)
TEXT = tuple(int(x) for x in np.random.default_rng(3).integers(0, 131, LENGTH))
SIZES = (16, 64, 256)


def chunks(cuts: list[int]) -> list[PrefillChunk]:
    """Chunks between these places, as long as they can be."""
    made: list[PrefillChunk] = []
    for start, stop in zip([0, *cuts], [*cuts, LENGTH - 1], strict=True):
        at = start
        while at < stop:
            size = next((size for size in SIZES if size >= stop - at), SIZES[-1])
            made.append(PrefillChunk(at, min(size, stop - at), size))
            at += size
    return made


def contents(state: RunnerState, slot: int) -> list[np.ndarray]:
    """Keys and values of the last tokens, which every layer still has."""
    found: list[np.ndarray] = []
    cache = state.caches.scaled
    for layer, kind in zip(cache.layers, cache.kinds, strict=True):
        table = np.asarray(cache.tables[kind])[slot]
        keys, values = (np.asarray(pool)[table] for pool in (layer.keys, layer.values))
        by_token = [keys.transpose(0, 2, 1, 3), values.transpose(0, 3, 1, 2)]
        index = np.arange(LENGTH - 40, LENGTH - 1) % (len(table) * layer.block)
        found += [x.reshape(-1, *x.shape[2:])[index] for x in by_token]
    return found


@pytest.mark.slow(by="form")
@EACH_FORM
def test_a_token_is_stored_with_the_same_bits_by_every_chunk_and_step(form: str, dtype: str) -> None:
    runner = Runner(windowed(form, dtype), slots=3, length=LENGTH + 20, row_buckets=(3,), looks_up=False)
    assert runner.reuse is not None
    assert runner.reuse.unit == 1
    assert runner.reuse.completions == (form != "Q8_0")

    def filled(cuts: list[int], slot: int) -> RunnerState:
        state = runner.admit(runner.new_state(), slot, TEXT, PARAMS)
        for chunk in chunks(cuts):
            state = runner.prefill(state, slot, TEXT, chunk).state
        return state

    expected = contents(filled([], 0), 0)
    for cuts in ([1], [17, 200], [5, 128, 129, 270], [255, 257, 290]):
        for found, wanted in zip(contents(filled(cuts, 1), 1), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=str(cuts))
    if not runner.reuse.completions:
        return
    first = LENGTH - 30
    state = runner.admit(runner.new_state(), 2, TEXT[:first], PARAMS)
    for chunk in runner.chunks(first):
        state = runner.prefill(state, 2, TEXT, chunk).state
    for count in range(first, LENGTH):
        # The slot's newest token is the one that the step runs; what it would have sampled does not matter.
        state = runner.admit(state, 2, TEXT[:count], PARAMS)
        state = runner.decode(state, [2], Features.of(PARAMS), longest=count).state
    for found, wanted in zip(contents(state, 2), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
