"""Embeddings: those of a whole pass without a cache, with the same bits alone, in any slot and beside others."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.notebook.whole_text import WholeTexts
from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.pooling import PooledPrompt, Pooling, normalized
from mistral_jax.runtime.recomputing import RecomputingRunner
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from tests.mistral_jax.tiny_adapters import CONFIG, adapter_set, model, xlora

pytestmark = pytest.mark.slow(by="file")

XLORA = AdapterChoice(xlora=True)
CHOICES = (BASE, AdapterChoice(weights=((1, 1.0), (2, 0.5))), XLORA)
TEXT = tuple(int(t) for t in np.random.default_rng(4).integers(3, CONFIG.vocab_size, 150))
PARAMS = SamplingParams(temperature=0.8, seed=5, max_tokens=0)
POOLINGS: tuple[Pooling, ...] = ("mean", "last")


def embed(
    run: Runner,
    text: Sequence[int],
    choice: AdapterChoice = BASE,
    *,
    slot: int = 0,
    state=None,
    beside: Sequence[int] = (),
) -> dict[str, np.ndarray]:
    """Both poolings of a text. Between its chunks the slots in `beside` decode."""
    state = run.admit(run.new_state() if state is None else state, slot, text, PARAMS, choice)
    pooled = PooledPrompt()
    for step, chunk in enumerate(run.chunks(len(text), embed=True)):
        done = run.prefill(state, slot, text, chunk, scaling=choice.xlora)
        state = done.state
        assert done.pooled is not None
        assert done.pooled.dtype == jnp.float32
        pooled.add(np.asarray(done.pooled))
        if beside:
            features = Features.of(SamplingParams(temperature=0.8, seed=5))
            scaling = run.xlora is not None
            state = run.decode(state, beside, features, longest=200 + step, scaling=scaling).state
    return {pooling: pooled.vector(pooling, tokens=len(text)) for pooling in POOLINGS}


class Runners:
    def __init__(self, dtype: str) -> None:
        adapters = {"adapters": adapter_set(dtype), "xlora": xlora()}
        self.cached = Runner(model(dtype), slots=4, length=256, chunks=(16, 64), row_buckets=(4,), **adapters)
        self.uncached = RecomputingRunner(model(dtype), slots=2, length=256, chunks=(16, 64), **adapters)
        self.plain = Runner(model(dtype), slots=2, length=256, chunks=(16, 64))


@pytest.fixture(scope="module")
def float32() -> Runners:
    return Runners("float32")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runners(request: pytest.FixtureRequest, float32: Runners) -> Runners:
    return float32 if request.param == "float32" else Runners(request.param)


def test_chunks_cover_all_tokens_and_depend_on_the_length_only(float32: Runners) -> None:
    chunks = list(float32.cached.chunks(150, embed=True))
    assert chunks == [
        PrefillChunk(0, 64, 64, embed=True),
        PrefillChunk(64, 64, 64, embed=True),
        PrefillChunk(128, 22, 64, embed=True),
    ]
    assert list(float32.cached.chunks(1, embed=True)) == [PrefillChunk(0, 1, 64, embed=True)]
    large = Runner(model("float32"), slots=2, length=512)
    assert [chunk.size for chunk in large.chunks(300, embed=True)] == [256, 64]
    assert list(float32.uncached.chunks(150, embed=True)) == chunks


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 64, 65, 150])
@pytest.mark.parametrize("choice", CHOICES)
def test_embeddings_are_those_of_a_whole_pass_without_a_cache(
    float32: Runners, choice: AdapterChoice, length: int
) -> None:
    text = TEXT[:length]
    hidden = np.asarray(WholeTexts(float32.cached).hidden_states(text, choice), np.float64)
    found = embed(float32.cached, text, choice)
    np.testing.assert_allclose(found["mean"], hidden.mean(axis=0), atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(found["last"], hidden[-1], atol=1e-5, rtol=1e-5)


def test_a_base_text_has_the_hidden_states_of_the_module(float32: Runners) -> None:
    hidden = model("float32").hidden_states(jnp.asarray([TEXT]))[0]
    np.testing.assert_allclose(embed(float32.plain, TEXT)["mean"], hidden.mean(axis=0), atol=1e-5, rtol=1e-5)


@pytest.mark.slow(by="runners")
@pytest.mark.parametrize("choice", CHOICES)
def test_bits_are_the_same_alone_in_any_slot_and_beside_others(runners: Runners, choice: AdapterChoice) -> None:
    run = runners.cached
    alone = embed(run, TEXT, choice)
    state = run.new_state()
    for slot, (other, length) in enumerate(((XLORA, 130), (BASE, 40))):
        prompt = TEXT[20 : 20 + length]
        state = run.admit(state, slot, prompt, SamplingParams(seed=1), other)
        for chunk in run.chunks(len(prompt)):
            state = run.prefill(state, slot, prompt, chunk, scaling=other.xlora).state
    beside = embed(run, TEXT, choice, slot=2, state=state, beside=(0, 1))
    last = embed(run, TEXT, choice, slot=3)
    for pooling in POOLINGS:
        np.testing.assert_array_equal(beside[pooling], alone[pooling])
        np.testing.assert_array_equal(last[pooling], alone[pooling])


@pytest.mark.slow(by="runners")
def test_bits_need_neither_a_cache_between_steps_nor_adapters(runners: Runners) -> None:
    for pooling in POOLINGS:
        np.testing.assert_array_equal(
            embed(runners.uncached, TEXT, XLORA)[pooling], embed(runners.cached, TEXT, XLORA)[pooling]
        )
        np.testing.assert_array_equal(embed(runners.plain, TEXT)[pooling], embed(runners.cached, TEXT)[pooling])


def test_adapters_change_embeddings(float32: Runners) -> None:
    found = [embed(float32.cached, TEXT, choice)["mean"] for choice in CHOICES]
    for index, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[index + 1 :])


def test_padding_does_not_count(float32: Runners) -> None:
    """The chunk of a short text is padded; what the padding holds changes nothing."""
    run = float32.plain
    state = run.admit(run.new_state(), 0, TEXT[:5], PARAMS)
    results = []
    for filler in (0, 7):
        tokens = np.full((64,), filler, np.int32)
        tokens[:5] = TEXT[:5]
        done = run.calls.prefill(state, 0, tokens, start=0, count=5, scaling=False, embed=True)()
        state = done.state
        results.append(np.asarray(done.pooled))
    np.testing.assert_array_equal(*results)


def test_nothing_compiles_after_warming_up() -> None:
    run = Runner(model("float32"), slots=2, length=64, chunks=(16, 32, 64))
    state = run.warm_up(run.new_state())
    assert run.programs.embed._cache_size() == len(run.buckets.embed) == 1
    for length in (1, 16, 17, 40, 64):
        state = run.admit(state, 0, TEXT[:length], PARAMS)
        for chunk in run.chunks(length, embed=True):
            state = run.prefill(state, 0, TEXT[:length], chunk).state
    jax.block_until_ready(state.caches)
    assert run.programs.embed._cache_size() == 1


def test_embeddings_that_are_turned_off_cost_no_program() -> None:
    run = Runner(model("float32"), slots=2, length=64, chunks=(16, 32), embeds=False)
    run.warm_up(run.new_state())
    assert run.programs.embed._cache_size() == 0


def test_a_normalised_vector_has_length_one_whatever_is_kept_of_it() -> None:
    vector = np.array([3.0, 4.0, 12.0], np.float32)
    np.testing.assert_allclose(normalized(vector), np.array([3, 4, 12]) / 13, rtol=1e-6)
    np.testing.assert_allclose(normalized(vector, 2), [0.6, 0.8], rtol=1e-6)
    np.testing.assert_array_equal(normalized(np.zeros((2,), np.float32)), [0, 0])
    assert normalized(vector).dtype == np.float32
