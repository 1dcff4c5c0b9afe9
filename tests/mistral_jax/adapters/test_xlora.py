"""X-LoRA: both passes with and without caches, batches of all kinds, speculative steps. Bits are compared, not
tolerances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.recomputing import RecomputingRunner
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams, TokenRules
from mistral_jax.runtime.sampling.sample import Features
from tests.mistral_jax.tiny_adapters import CONFIG, LORAS, adapter_set, model, xlora

XLORA = AdapterChoice(xlora=True)
CHOICES = (
    BASE,
    AdapterChoice(weights=((0, 1.0),)),
    AdapterChoice(weights=((1, 1.0), (2, 0.5))),
    XLORA,
    AdapterChoice(xlora=True, freeze_after=3),
)
TEXT = tuple(int(t) for t in np.random.default_rng(2).integers(3, CONFIG.vocab_size, 150))
STEPS = 12


def runner(dtype: str, kind: type[Runner] = Runner, **settings: object) -> Runner:
    chosen = {"slots": 16, "length": 256, "chunks": (16, 64), "xlora": xlora(), **settings}
    return kind(model(dtype), adapters=adapter_set(dtype, spare=1), **chosen)  # type: ignore[arg-type]


def answers(
    run: Runner,
    prompts: Sequence[tuple[int, ...]],
    choices: Sequence[AdapterChoice],
    *,
    slots: Sequence[int] | None = None,
    speculative: Sequence[bool] = (False,),
    temperature: float = 0.8,
) -> list[np.ndarray]:
    """STEPS tokens of each prompt with their log-probabilities, as bits: int32 [STEPS, PACKED_WIDTH]."""
    slots = list(slots or range(len(prompts)))
    params = SamplingParams(temperature=temperature, seed=5, logprobs=4)
    if temperature:
        # Rules depend on the tokens before, which a guess does not know.
        rules = TokenRules(ends=(3, 4, 5), banned_sequences=((7, 8),))
        params = replace(params, dry_multiplier=1.0, dry_allowed_length=1, min_tokens=5, rules=rules)
    state = run.new_state()
    for slot, prompt, choice in zip(slots, prompts, choices, strict=True):
        state = run.admit(state, slot, prompt, params, choice)
        for chunk in run.chunks(len(prompt)):
            state = run.prefill(state, slot, prompt, chunk, scaling=choice.xlora).state
    rows: list[list[np.ndarray]] = [[] for _ in prompts]
    step = 0
    while min(map(len, rows)) < STEPS:
        stepped = run.decode(
            state,
            slots,
            Features.of(params),
            longest=max(map(len, prompts)) + step,
            scaling=any(choice.needs_scaling(step) for choice in choices),
            speculative=speculative[step % len(speculative)],
        )
        state, step = stepped.state, step + 1
        packed = np.asarray(stepped.packed)
        for slot, own in zip(slots, rows, strict=True):
            if (stepped.emitted is None or stepped.emitted[slot]) and len(own) < STEPS:
                own.append(packed[slot])
    return [np.stack(own) for own in rows]


class Batch:
    """Sixteen requests of all kinds together, which every test compares with."""

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype
        self.runner = runner(dtype)
        self.prompts = [TEXT[: 5 + 9 * i] for i in range(16)]
        self.choices = [CHOICES[i % len(CHOICES)] for i in range(16)]
        self.together = answers(self.runner, self.prompts, self.choices)


@pytest.fixture(scope="module", params=["float32", "bfloat16", "int8-float32", "int8-bfloat16"])
def batch(request: pytest.FixtureRequest) -> Batch:
    return Batch(request.param)


@pytest.mark.slow(by="batch")
class TestBits:
    def test_a_request_is_the_same_alone_in_any_slot(self, batch: Batch) -> None:
        for i in range(16):
            [alone] = answers(batch.runner, [batch.prompts[i]], [batch.choices[i]], slots=[(7 * i + 3) % 16])
            np.testing.assert_array_equal(alone, batch.together[i])

    def test_chunks_do_not_matter(self, batch: Batch) -> None:
        other = runner(batch.dtype, slots=2, chunks=(32,))
        for i in range(10, 15):
            [alone] = answers(other, [batch.prompts[i]], [batch.choices[i]])
            np.testing.assert_array_equal(alone, batch.together[i])

    def test_without_a_cache_it_is_the_same(self, batch: Batch) -> None:
        other = runner(batch.dtype, RecomputingRunner, slots=2)
        assert not list(other.chunks(100))
        for i in (0, 1, 2, 3, 8):
            [alone] = answers(other, [batch.prompts[i]], [batch.choices[i]])
            np.testing.assert_array_equal(alone, batch.together[i])

    def test_a_base_request_is_as_on_a_runner_without_adapters(self, batch: Batch) -> None:
        plain = Runner(model(batch.dtype), slots=2, length=256)
        [alone] = answers(plain, [batch.prompts[5]], [BASE])
        np.testing.assert_array_equal(alone, batch.together[5])

    @pytest.mark.parametrize("speculative", [(True,), (True, False), (True, True, False)])
    @pytest.mark.parametrize("temperature", [0.0, 0.8])
    def test_speculation_changes_nothing(self, batch: Batch, speculative: tuple[bool, ...], temperature: float) -> None:
        chosen = [i for i in range(16) if batch.choices[i].freeze_after is None]
        prompts, choices = [batch.prompts[i] for i in chosen], [batch.choices[i] for i in chosen]
        expected = answers(batch.runner, prompts, choices, temperature=temperature)
        actual = answers(batch.runner, prompts, choices, speculative=speculative, temperature=temperature)
        for one, other in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_caches_give_what_whole_passes_give() -> None:
    for settings in ({}, {"scaling_pass_value": 0.5}, {"layerwise_scalings": False, "top_k_lora": 2}):
        classifier = xlora(**settings)
        run = runner("float32", slots=2, xlora=classifier)
        [cached] = answers(run, [TEXT[:70]], [XLORA], temperature=0.0)
        tokens = [*TEXT[:70], *(int(t) for t in cached[:, 0])]
        module, adapters = model(), adapter_set()
        # One program: operation by operation takes a minute to compile.
        whole = nnx.jit(lambda xlora, module, bank, tokens: xlora.hidden_states(module, bank, tokens))
        hidden, scalings = whole(classifier, module, adapters.bank, jnp.asarray([tokens]))
        logprobs = jax.nn.log_softmax(module.logits(hidden[0]))
        for i, row in enumerate(cached):
            assert int(jnp.argmax(logprobs[69 + i])) == row[0]
            np.testing.assert_allclose(row[1:2].view(np.float32), logprobs[69 + i, row[0]], atol=2e-5)
        np.testing.assert_allclose(np.sum(scalings, axis=-1), 1.0, rtol=1e-5)


class TestWeights:
    scalings = jnp.asarray([[0.5, 0.2, 0.3], [0.1, 0.3, 0.6]])[None]

    def test_top_k_keeps_the_largest_as_they_are(self) -> None:
        weights = xlora(top_k_lora=2).weights(self.scalings, 3)
        np.testing.assert_allclose(weights[0], [[0.5, 0, 0.3], [0, 0.3, 0.6]], rtol=1e-6)

    def test_softmax_after_top_k_is_over_what_is_left(self) -> None:
        weights = np.asarray(xlora(top_k_lora=2, enable_softmax_topk=True).weights(self.scalings, 3))[0]
        expected = np.exp([0.5, 0.3]) / np.sum(np.exp([0.5, 0.3]))
        np.testing.assert_allclose(weights[0], [expected[0], 0, expected[1]], rtol=1e-6)

    def test_the_global_weight_is_a_factor_and_other_adapters_get_nothing(self) -> None:
        weights = xlora(global_scaling_weight=1.3).weights(self.scalings, 5)
        np.testing.assert_allclose(weights[0, 0], [0.65, 0.26, 0.39, 0, 0], rtol=1e-6)


def test_frozen_weights_are_those_of_the_token_that_was_named() -> None:
    run = runner("float32", slots=2)
    params, prompt = SamplingParams(temperature=0.0, seed=3), TEXT[:20]
    for after in (1, 3):
        state = run.admit(run.new_state(), 1, prompt, params, AdapterChoice(xlora=True, freeze_after=after))
        for chunk in run.chunks(len(prompt)):
            state = run.prefill(state, 1, prompt, chunk, scaling=True).state
        used: list[np.ndarray] = []
        for step in range(6):
            scaling = step <= after
            state, _, weights, _ = run.decode(state, [1], Features(), longest=21 + step, scaling=scaling)
            assert state.rows.mixing is not None
            used.append(np.asarray(state.rows.mixing.weights[1] if weights is None else weights[1]))
        for step in range(after, 6):
            np.testing.assert_array_equal(used[step], used[after])
        assert not np.array_equal(used[after - 1], used[after])


def test_a_choice_that_the_runner_cannot_make_is_refused() -> None:
    plain = Runner(model(), slots=2, length=64)
    params = SamplingParams(seed=1)
    with pytest.raises(ValueError, match="no classifier"):
        plain.admit(plain.new_state(), 0, (5,), params, XLORA)
    with pytest.raises(ValueError, match="expected adapters by number, from 0 to -1"):
        plain.admit(plain.new_state(), 0, (5,), params, AdapterChoice(weights=((0, 1.0),)))
    uncached = runner("float32", RecomputingRunner, slots=2)
    with pytest.raises(ValueError, match="freeze_after needs the caches"):
        uncached.admit(uncached.new_state(), 0, (5,), params, AdapterChoice(xlora=True, freeze_after=1))
    with pytest.raises(ValueError, match="expected one of the two"):
        AdapterChoice(xlora=True, weights=((0, 1.0),))
    with pytest.raises(ValueError, match="needs a bank that holds them"):
        Runner(model(), slots=2, length=64, xlora=xlora())
    assert len(LORAS) == 3
