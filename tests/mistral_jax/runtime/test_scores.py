"""Log-probabilities of prompts: those of a whole pass, and the same bits alone, in company, and where the tokens are
generated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.checkpoint.weights import load_weights, open_weights, save_pretrained
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral
from mistral_jax.notebook.whole_text import WholeTexts
from mistral_jax.quant.plan import Activations, Quantization
from mistral_jax.runtime.recomputing import RecomputingRunner
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import MAX_TOP_LOGPROBS, SamplingParams
from mistral_jax.runtime.sampling.sample import PACKED_WIDTH, Features, score_tokens, unpack
from tests.mistral_jax.tiny_adapters import CONFIG, adapter_set, model, xlora

pytestmark = pytest.mark.slow(by="file")

XLORA = AdapterChoice(xlora=True)
CHOICES = (BASE, AdapterChoice(weights=((1, 1.0), (2, 0.5))), XLORA, AdapterChoice(xlora=True, freeze_after=1))
TEXT = tuple(int(t) for t in np.random.default_rng(4).integers(3, CONFIG.vocab_size, 150))
PARAMS = SamplingParams(temperature=0.8, seed=5, logprobs=4)


def scores(run: Runner, text: Sequence[int], choice: AdapterChoice = BASE, *, slot: int = 0) -> np.ndarray:
    """int32 [T - 1, PACKED_WIDTH], alone on the runner."""
    return np.concatenate(list(scored_chunks(run, run.new_state(), text, choice, slot)))


def scored_chunks(
    run: Runner, state, text: Sequence[int], choice: AdapterChoice, slot: int, *, beside: Sequence[int] = ()
) -> Iterator[np.ndarray]:
    """The scores of one chunk after another. Between them the slots in `beside` decode."""
    state = run.admit(state, slot, text, PARAMS, choice)
    for step, chunk in enumerate(run.chunks(len(text), score=True)):
        assert (chunk.score, chunk.size) == (True, run.buckets.score)
        done = run.prefill(state, slot, text, chunk, scaling=choice.xlora)
        state = done.state
        assert done.scores is not None
        yield np.asarray(done.scores)[: chunk.count]
        if beside:
            scaling = run.xlora is not None
            features = Features.of(PARAMS)
            state = run.decode(state, beside, features, longest=200 + step, scaling=scaling).state


def logprobs(packed: np.ndarray) -> np.ndarray:
    return packed[:, 1].view(np.float32)


class Runners:
    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        adapters = {"adapters": adapter_set(dtype), "xlora": xlora()}
        self.cached = Runner(model(dtype), slots=4, length=256, chunks=(64,), row_buckets=(4,), **adapters)
        self.uncached = RecomputingRunner(model(dtype), slots=2, length=256, chunks=(64,), **adapters)
        self.plain = Runner(model(dtype), slots=2, length=256)


@pytest.fixture(scope="module")
def float32() -> Runners:
    return Runners("float32")


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def runners(request: pytest.FixtureRequest, float32: Runners) -> Runners:
    return float32 if request.param == "float32" else Runners(request.param)


def decode(run: Runner, text: Sequence[int], choice: AdapterChoice, steps: int, *, score: bool = False) -> np.ndarray:
    """int32 [steps, PACKED_WIDTH]: what is generated after a text."""
    state = run.admit(run.new_state(), 1, text, PARAMS, choice)
    for chunk in run.chunks(len(text), score=score):
        state = run.prefill(state, 1, text, chunk, scaling=choice.xlora).state
    rows: list[np.ndarray] = []
    for step in range(steps):
        scaling = choice.needs_scaling(step)
        stepped = run.decode(state, [1], Features.of(PARAMS), longest=len(text) + step, scaling=scaling)
        state = stepped.state
        rows.append(np.asarray(stepped.packed)[1])
    return np.stack(rows)


@pytest.mark.parametrize("choice", CHOICES)
def test_a_text_that_was_generated_has_the_bits_that_it_was_generated_with(
    runners: Runners, choice: AdapterChoice
) -> None:
    generated = decode(runners.cached, TEXT[:60], choice, 12)
    if choice.freeze_after is None:
        text = (*TEXT[:60], *(int(token) for token in generated[:, 0]))
        np.testing.assert_array_equal(scores(runners.cached, text, choice)[59:], generated)
    # And what follows a scored text is what follows it otherwise.
    np.testing.assert_array_equal(decode(runners.cached, TEXT[:60], choice, 12, score=True), generated)


@pytest.mark.parametrize("choice", CHOICES[:3])
def test_scores_are_the_same_alone_in_any_slot_and_beside_others(runners: Runners, choice: AdapterChoice) -> None:
    run = runners.cached
    alone = scores(run, TEXT, choice)
    assert alone.shape == (len(TEXT) - 1, PACKED_WIDTH)
    np.testing.assert_array_equal(scores(run, TEXT, choice, slot=3), alone)
    state = run.new_state()
    for slot, (other, length) in enumerate(((XLORA, 130), (BASE, 40))):
        prompt = TEXT[20 : 20 + length]
        state = run.admit(state, slot, prompt, PARAMS, other)
        for chunk in run.chunks(len(prompt)):
            state = run.prefill(state, slot, prompt, chunk, scaling=other.xlora).state
    beside = np.concatenate(list(scored_chunks(run, state, TEXT, choice, 2, beside=(0, 1))))
    np.testing.assert_array_equal(beside, alone)


def test_scores_need_no_cache_between_steps(runners: Runners) -> None:
    np.testing.assert_array_equal(scores(runners.uncached, TEXT, XLORA), scores(runners.cached, TEXT, XLORA))


def test_a_base_text_is_scored_as_on_a_runner_without_adapters(runners: Runners) -> None:
    np.testing.assert_array_equal(scores(runners.plain, TEXT), scores(runners.cached, TEXT))


def test_scores_are_those_of_a_whole_pass_without_a_cache(float32: Runners) -> None:
    whole = WholeTexts(float32.cached)
    for choice in CHOICES[:3]:
        table = np.asarray(jax.nn.log_softmax(whole.logits(TEXT, choice)))
        for length in (2, 17, 65, 66, 150):
            text, expected = TEXT[:length], table[: length - 1]
            packed = scores(float32.cached, text, choice)
            np.testing.assert_array_equal(packed[:, 0], text[1:])
            np.testing.assert_allclose(logprobs(packed), expected[np.arange(length - 1), text[1:]], atol=1e-5, rtol=0)
            likeliest = -np.sort(-expected, axis=-1)[:, :MAX_TOP_LOGPROBS]
            told = packed[:, 2 + MAX_TOP_LOGPROBS : -1].view(np.float32)
            np.testing.assert_allclose(told, likeliest, atol=1e-5, rtol=0)
            # Two tokens may be as likely as each other but for the last bits, which differ between the two ways.
            own = expected[np.arange(length - 1), text[1:]][:, None]
            ranks = packed[:, -1] - 1
            assert ((expected > own + 2e-5).sum(axis=-1) <= ranks).all()
            assert (ranks <= (expected > own - 2e-5).sum(axis=-1) - 1).all()


@pytest.mark.parametrize("activations", ["float", "int8"])
@pytest.mark.parametrize(("quant", "dtype"), [("q8_0", "bfloat16"), ("q4_k", "float32"), ("int8", "bfloat16")])
def test_packed_weights_score_alike_alone_and_beside_others(
    quant: Quantization, dtype: str, activations: Activations, tmp_path: Path
) -> None:
    config = MistralConfig(
        vocab_size=97,
        hidden_size=256,
        intermediate_size=256,
        num_layers=1,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        layer_windows=(40,),
    )
    save_pretrained(Mistral(config, rngs=nnx.Rngs(0)), tmp_path)
    files = open_weights(config, [tmp_path / "model.safetensors"])
    packed_model = load_weights(config, files, dtype=jnp.dtype(dtype), quant=quant, activations=activations)
    run = Runner(packed_model, slots=3, length=256, chunks=(16,))
    alone = scores(run, TEXT[:70])
    state = run.admit(run.new_state(), 2, TEXT[30:40], PARAMS)
    for chunk in run.chunks(10):
        state = run.prefill(state, 2, TEXT[30:40], chunk).state
    beside = np.concatenate(list(scored_chunks(run, state, TEXT[:70], BASE, 1, beside=(2,))))
    np.testing.assert_array_equal(beside, alone)
    table = jax.nn.log_softmax(WholeTexts(run).logits(TEXT[:70], BASE))
    bound = 1e-4 if dtype == "float32" else 0.3
    np.testing.assert_allclose(logprobs(alone), table[np.arange(69), np.array(TEXT[1:70])], atol=bound)


def test_blocks_of_keys_that_are_read_at_once_give_the_same_numbers(float32: Runners) -> None:
    """As on a GPU, where all lengths have one program of scores."""
    run = Runner(model(), slots=2, length=512, block_buckets=(1, 2, 4))
    expected = scores(float32.plain, TEXT)
    np.testing.assert_allclose(logprobs(scores(run, TEXT)), logprobs(expected), atol=1e-5)
    assert run.programs.score._cache_size() == 1


def test_the_kernel_for_gpus_gives_the_same_numbers(float32: Runners) -> None:
    run = Runner(model(), slots=2, length=512, gpu_kernels=True)
    np.testing.assert_allclose(logprobs(scores(run, TEXT)), logprobs(scores(float32.plain, TEXT)), atol=1e-5)


def test_of_values_that_are_not_numbers_nothing_is_told() -> None:
    logits = jnp.asarray([[0.5, 1.0, -jnp.inf], [jnp.nan, 0.0, 1.0]])
    packed = np.asarray(score_tokens(logits, jnp.asarray([2, 1])))
    # A probability of zero is a number.
    assert (unpack(packed[0], 0).token, unpack(packed[0], 0).logprob) == (2, -9999.0)
    assert unpack(packed[1], 0).token == -1


def test_chunks_that_are_scored_have_one_size() -> None:
    run = Runner(model(), slots=2, length=512, chunks=(16, 64, 256))
    assert [(c.start, c.count, c.size) for c in run.chunks(70, score=True)] == [(0, 64, 64), (64, 5, 64)]
    assert list(run.chunks(1, score=True)) == []
    assert Runner(model(), slots=2, length=512, chunks=(256,)).buckets.score == 256
    assert Runner(model(), slots=2, length=32).buckets.score == 32
