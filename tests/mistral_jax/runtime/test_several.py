"""Several decode steps in one program: the same bits as one after another."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.recomputing import RecomputingRunner
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from mistral_jax.runtime.step import SEVERAL
from tests.mistral_jax import tiny_adapters
from tests.mistral_jax.tiny_adapters import hold_matrices_as

PROMPTS = [(5, 9, 11), (7,), tuple(range(3, 40)), (12, 13, 12, 13, 12)]
SLOTS = [0, 2, 3, 5]
PARAMS = [
    SamplingParams(temperature=0.0, seed=1, logprobs=3),
    SamplingParams(temperature=0.9, top_p=0.9, top_k=30, seed=2, logprobs=5),
    SamplingParams(temperature=1.2, seed=3, repetition_penalty=1.3, presence_penalty=0.4, logit_bias={9: 2.0}),
    SamplingParams(temperature=0.8, seed=4, frequency_penalty=0.5),
]


EACH_FORM = pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("plain", "float32"),
        ("plain", "bfloat16"),
        ("int8", "bfloat16"),
        ("Q8_0", "float32"),
        ("Q4_1/int8", "bfloat16"),
    ],
)
"""Forms of weights, one of each way of multiplying; see `windowed`."""


def windowed(form: str, dtype: str) -> Mistral:
    config = MistralConfig(
        vocab_size=131,
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        layer_windows=(32, None),
    )
    module = Mistral(config, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(1))
    return module if form == "plain" else hold_matrices_as(form, module)


def admitted(runner: Runner, choices: list[AdapterChoice]):
    state = runner.new_state()
    for slot, prompt, params, choice in zip(SLOTS, PROMPTS, PARAMS, choices, strict=True):
        state = runner.admit(state, slot, prompt, params, choice)
        for chunk in runner.chunks(len(prompt)):
            state = runner.prefill(state, slot, prompt, chunk).state
    return state


def rows_alone_and_together(runner: Runner, choices: list[AdapterChoice], counts: list[list[int]]) -> None:
    """Compares tokens and log-probabilities of calls in which rows get so many tokens each, with single steps."""
    features = Features()
    for params in PARAMS:
        features |= Features.of(params)
    expected: list[list[np.ndarray]] = [[] for _ in SLOTS]
    state = admitted(runner, choices)
    for step in range(sum(map(max, counts)) + len(counts)):
        stepped = runner.decode(state, SLOTS, features, longest=64 + step)
        state, packed = stepped.state, np.asarray(stepped.packed)
        for number, slot in enumerate(SLOTS):
            expected[number].append(packed[slot])
    found: list[list[np.ndarray]] = [[] for _ in SLOTS]
    state = admitted(runner, choices)
    for each in counts:
        stepped = runner.several(state, SLOTS, each, features, longest=128)
        state, packed = stepped.state, np.asarray(stepped.packed)
        assert packed.shape[0] == SEVERAL
        for number, (slot, count) in enumerate(zip(SLOTS, each, strict=True)):
            found[number] += list(packed[:count, slot])
        # A single step continues where several ended.
        single = runner.decode(state, SLOTS, features, longest=128)
        state, packed = single.state, np.asarray(single.packed)
        for number, slot in enumerate(SLOTS):
            found[number].append(packed[slot])
    for number, rows in enumerate(found):
        np.testing.assert_array_equal(rows, expected[number][: len(rows)], err_msg=f"row {number}")
    assert len({int(row[0]) for rows in found for row in rows}) > SEVERAL


@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("plain", "float32"),
        pytest.param("plain", "bfloat16", marks=pytest.mark.slow),
        pytest.param("int8", "bfloat16", marks=pytest.mark.slow),
        pytest.param("Q8_0", "float32", marks=pytest.mark.slow),
        pytest.param("Q8_0/int8", "bfloat16", marks=pytest.mark.slow),
        ("Q8_0", "bfloat16"),
    ],
)
def test_rows_get_the_bits_of_single_steps(form: str, dtype: str) -> None:
    runner = Runner(windowed(form, dtype), slots=8, length=256, chunks=(16, 64), repeat_last_n=16, row_buckets=(8,))
    full = [SEVERAL] * 4
    rows_alone_and_together(runner, [BASE] * 4, [full, [1, 4, 2, 3], full, [4, 0, 0, 1]])


def test_rows_with_adapters_get_the_bits_of_single_steps() -> None:
    model, adapters = tiny_adapters.model(), tiny_adapters.adapter_set()
    runner = Runner(model, slots=8, length=128, chunks=(16, 64), row_buckets=(8,), adapters=adapters)
    choices = [BASE, *(AdapterChoice(weights=((number, 0.7),)) for number in (0, 1, 0))]
    rows_alone_and_together(runner, choices, [[SEVERAL] * 4, [2, 1, 4, 3]])


def test_small_models_have_the_programs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapters = tiny_adapters.model(), tiny_adapters.adapter_set()
    sizes = {"slots": 8, "length": 64, "chunks": (16,)}
    runners = [
        Runner(model, **sizes),
        Runner(model, **sizes, adapters=adapters),
        Runner(model, **sizes, adapters=adapters, xlora=tiny_adapters.xlora()),
        RecomputingRunner(model, **sizes),
    ]
    assert {runner.several_buckets for runner in runners} == {()}
    monkeypatch.setattr(Placement, "platform", "gpu")
    assert [runner.several_buckets for runner in runners] == [(2, 8), (2, 8), (), ()]
    monkeypatch.setattr(Runner, "weight_bytes", property(lambda self: 3 << 30))
    assert runners[0].several_buckets == ()
