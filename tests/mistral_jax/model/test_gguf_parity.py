"""GGUF files that llama.cpp made, each served from the file alone. The files and their maker:
`tests/goldens/make_gguf.py`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.hub.files import find_model
from mistral_jax.notebook.language_model import LanguageModel
from tests.parity_gguf import Golden, answer, distance, generate, goldens, leads_lost

pytestmark = pytest.mark.slow

# llama.cpp unpacked to float32 computes as we do. Measured: 1.2e-5 at most.
TO_EXACT = 1e-4
# What the rounding of activations makes of llama.cpp's logits, and of nothing else. Measured, at most: 8 bits 0.19
# (mean 0.018), bfloat16 0.018 (mean 0.0038); of standard deviations.
TO_LLAMA = {False: (0.25, 0.025), True: (0.025, 0.005)}

FILES = {golden.name: golden for golden in goldens()}
ONE_OF_EACH_MODEL = ["biases.Q8_0", "llama3.Q4_0", "ministral3.Q4_K_M", "narrow.IQ4_XS", "wide.Q4_K_M", "window.BF16"]


@pytest.mark.parametrize("golden", FILES.values(), ids=FILES.keys())
def test_logits_and_greedy_tokens_equal_llama_cpp(golden: Golden) -> None:
    model = golden.load()
    answers = [answer(model, prompt) for prompt in golden.prompts]
    ours, exact = [a.logits for a in answers], [p.exact for p in golden.prompts]
    assert distance(golden, ours, exact).max <= TO_EXACT
    for a, prompt in zip(answers, golden.prompts, strict=True):
        assert a.after_exact == prompt.greedy_exact
    llama = [p.llama for p in golden.prompts if p.llama is not None]
    if not llama:
        return
    most, mean = TO_LLAMA["BF16" in golden.name]
    to_llama = distance(golden, ours, llama)
    assert to_llama.max <= most
    assert to_llama.mean <= mean
    # Another token than llama.cpp's only where two of them were closer than its error can move them.
    for a, prompt in zip(answers, golden.prompts, strict=True):
        assert all(lead <= 2 * most * golden.spread for lead in leads_lost(a, prompt))


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("BF16")])
def test_activations_of_8_bits_cost_no_more_than_in_llama_cpp(name: str) -> None:
    """Both round activations: llama.cpp 32 at a time, or 256 for K types, we 32 at a time. Measured, relative to the
    mean distance of llama.cpp's logits from the exact ones: ours 0.6 to 1.15, between the two 0.3 to 1.2."""
    golden = FILES[name]
    if any(prompt.llama is None for prompt in golden.prompts):
        pytest.skip("no logits of llama.cpp's own types")
    model = golden.load("auto", "int8")
    ours = [answer(model, prompt).logits for prompt in golden.prompts]
    exact, llama = ([np.asarray(getattr(p, which)) for p in golden.prompts] for which in ("exact", "llama"))
    theirs = distance(golden, llama, exact)
    found = distance(golden, ours, exact)
    assert 0 < found.mean <= 1.2 * theirs.mean
    assert found.max <= 1.5 * theirs.max
    assert distance(golden, ours, llama).mean <= 1.25 * theirs.mean


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_OF_EACH_MODEL)
def test_text_in_text_out_from_the_file_alone(name: str) -> None:
    """The file's own tokenizer gives llama.cpp's ids; generation through the cache, the tokens of llama.cpp in
    float32."""
    golden = FILES[name]
    model = golden.load()
    for text, prompt in zip(golden.described["prompts"], golden.prompts, strict=True):
        assert model.encode(text) == prompt.tokens
    for expected in golden.described["tokens"]:
        assert model.encode(expected["text"]) == expected["ids"]
    generated = generate(model, golden.prompts)
    assert [[sampled.token for sampled in g.tokens] for g in generated] == [p.greedy_exact for p in golden.prompts]
    assert [g.text for g in generated] == golden.greedy_texts


def test_goldens_cover_what_they_should() -> None:
    """A golden cannot drop out unseen: each type that the tests are to cover is in one, and so is each kind of
    model."""
    assert {golden.name.split(".")[1] for golden in FILES.values()} == {
        *("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
        *("Q2_K", "Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "IQ4_XS"),
    }
    assert {name.split(".")[0] for name in ONE_OF_EACH_MODEL} == {name.split(".")[0] for name in FILES}


def test_a_window_that_is_not_read_would_show() -> None:
    golden = FILES["window.BF16"]
    described = describe(find_model(str(golden.path)))
    assert set(described.config.layer_windows) == {9}
    described = replace(
        described, config=replace(described.config, layer_windows=(None,) * described.config.num_layers)
    )
    model = LanguageModel(described, load_module(described, dtype="float32"), slots=4, length=256)
    ours = [np.asarray(model.logits(prompt.tokens))[prompt.positions] for prompt in golden.prompts]
    assert distance(golden, ours, [prompt.exact for prompt in golden.prompts]).max > 0.1
