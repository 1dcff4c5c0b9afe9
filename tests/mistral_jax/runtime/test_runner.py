"""The runner: what a request gets has the same bits alone and beside others, in every form of weights, whatever the
vocabulary."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features
from tests.mistral_jax.tiny_adapters import hold_matrices_as

pytestmark = pytest.mark.slow

STEPS = 6


def model(vocab_size: int, form: str, dtype: str, *, tied: bool) -> Mistral:
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=64,
        intermediate_size=160,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
    )
    module = Mistral(config, param_dtype=jnp.dtype(dtype), rngs=nnx.Rngs(1))
    return module if form == "plain" else hold_matrices_as(form, module)


def tokens(run: Runner, prompts: list[tuple[int, ...]], slots: list[int]) -> list[np.ndarray]:
    """STEPS tokens of each prompt with log-probabilities, as bits: int32 [STEPS, PACKED_WIDTH]."""
    state = run.new_state()
    params = SamplingParams(temperature=0.9, top_p=0.95, seed=11, logprobs=5)
    for slot, prompt in zip(slots, prompts, strict=True):
        state = run.admit(state, slot, prompt, params)
        for chunk in run.chunks(len(prompt)):
            state = run.prefill(state, slot, prompt, chunk).state
    rows: list[np.ndarray] = []
    for step in range(STEPS):
        stepped = run.decode(state, slots, Features.of(params), longest=max(map(len, prompts)) + step + 1)
        state = stepped.state
        rows.append(np.asarray(stepped.packed)[slots])
    return list(np.stack(rows, axis=1))


@pytest.mark.parametrize(
    ("vocab_size", "form", "dtype", "tied"),
    [
        (1031, "plain", "float32", False),
        (1026, "plain", "bfloat16", True),
        (997, "int8", "float32", True),
        (1031, "int8", "bfloat16", False),
        (1037, "Q8_0", "bfloat16", False),
        (1033, "Q5_1/int8", "bfloat16", True),
    ],
)
def test_a_request_has_the_same_bits_alone_in_any_slot(vocab_size: int, form: str, dtype: str, tied: bool) -> None:
    run = Runner(model(vocab_size, form, dtype, tied=tied), slots=16, length=128, chunks=(16, 64))
    rng = np.random.default_rng(vocab_size)
    prompts = [tuple(rng.integers(3, vocab_size, size).tolist()) for size in rng.integers(1, 90, 16)]
    together = tokens(run, prompts, list(range(16)))
    assert len({int(token) for row in together for token in row[:, 0]}) > STEPS
    for i in range(16):
        [alone] = tokens(run, [prompts[i]], [(5 * i + 1) % 16])
        np.testing.assert_array_equal(alone, together[i])
