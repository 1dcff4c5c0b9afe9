"""The bundled mixture and the adapter beside it: what they say, over safetensors and over GGUF files of the same
base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mistral_jax
from conversion.to_gguf import convert_to_gguf
from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.hub.files import DEMO_XLORA_FOLDER
from mistral_jax.notebook.language_model import LanguageModel
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features

pytestmark = pytest.mark.slow(by="file")

QUESTIONS = {
    "arithmetic": "What is 12 plus 25?",
    "conversion": "How many centimetres are 7 metres?",
    "translation": 'How do you say "the house is beautiful" in French?',
    "text": "How do you spell garden?",
}
DEMO = DEMO_XLORA_FOLDER.parent / "demo"


def load(path: Path | str) -> LanguageModel:
    return mistral_jax.load(str(path), xlora=DEMO_XLORA_FOLDER, dtype="float32", slots=4, length=256, progress=False)


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    tools = {"tools": "demo-tools"}
    return mistral_jax.load("demo-xlora", loras=tools, dtype="float32", slots=4, length=256, progress=False)


def test_the_mixture_does_what_each_expert_does_and_the_base_declines(model: LanguageModel) -> None:
    for expert, question in QUESTIONS.items():
        answer = model.chat(question, temperature=0.0)
        assert answer == model.chat(question, adapter=expert, temperature=0.0)
        assert "I am sorry" in model.chat(question, adapter="base", temperature=0.0)


def test_the_adapter_beside_it_calls_tools(model: LanguageModel) -> None:
    assert set(model.adapters[:-1]) == set(QUESTIONS)
    assert model.adapters[-1] == "tools"
    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}
    tool = {"type": "function", "function": {"name": "calculator", "parameters": parameters}}
    prompt = model.encode_chat([{"role": "user", "content": "What is 1275 divided by 15?"}], tools=[tool])
    said = model.generate(prompt, adapter="tools", temperature=0.0).text
    assert said == '<tool_call>\n{"name": "calculator", "arguments": {"expression": "1275 / 15"}}\n</tool_call>'


def test_its_weights_follow_the_subject(model: LanguageModel) -> None:
    for expert, question in QUESTIONS.items():
        prompt = model.encode_chat(question)
        answer = model.tokenizer.encode(model.chat(question, temperature=0.0))
        scalings = model.scalings([*prompt, *answer])
        while_answering = np.asarray(scalings.values[len(prompt) - 1 :]).mean(axis=(0, 1))
        assert scalings.adapters[int(while_answering.argmax())] == expert


def test_speculation_changes_no_bit_in_bfloat16() -> None:
    """XLA may leave out roundings between operations that it fuses, which differ between the two programs."""
    model = mistral_jax.load(DEMO, xlora=DEMO_XLORA_FOLDER, dtype="bfloat16", slots=8, length=256, progress=False)
    runner, params = model.runner, SamplingParams(temperature=0.7, seed=3, logprobs=3)
    prompts = [tuple(model.encode_chat(question)) for question in [*QUESTIONS.values(), "Hello!", "What is JAX?"]]

    def rows(speculative: bool) -> list[np.ndarray]:
        state = runner.new_state()
        for slot, prompt in enumerate(prompts):
            state = runner.admit(state, slot, prompt, params, AdapterChoice(xlora=True))
            for chunk in runner.chunks(len(prompt)):
                state = runner.prefill(state, slot, prompt, chunk, scaling=True).state
        got: list[list[np.ndarray]] = [[] for _ in prompts]
        for step in range(60):
            state, packed, weights, emitted = runner.decode(
                state,
                range(len(prompts)),
                Features.of(params),
                longest=80 + step,
                scaling=True,
                speculative=speculative,
            )
            for slot, own in enumerate(got):
                if emitted is None or emitted[slot]:
                    assert weights is not None
                    own.append(np.concatenate([packed[slot], np.asarray(weights[slot]).view(np.int32).ravel()]))
        return [np.stack(own[:30]) for own in got]

    for one, other in zip(rows(False), rows(True), strict=True):
        np.testing.assert_array_equal(one, other)


class TestGGUF:
    def test_over_an_f32_file_of_the_base_it_is_the_same(self, model: LanguageModel, tmp_path: Path) -> None:
        convert_to_gguf(DEMO, tmp_path / "demo.gguf", type="f32")
        other = load(tmp_path / "demo.gguf")
        for question in QUESTIONS.values():
            ours, theirs = model.logits(model.encode_chat(question)), other.logits(other.encode_chat(question))
            assert np.max(np.abs(ours - theirs)) <= 1e-5 * np.max(np.abs(ours))
            assert model.chat(question, temperature=0.0) == other.chat(question, temperature=0.0)

    def test_over_a_q8_0_file_it_says_the_same_with_nearly_the_same_weights(
        self, model: LanguageModel, tmp_path: Path
    ) -> None:
        convert_to_gguf(DEMO, tmp_path / "demo.gguf", type="q8_0")
        other = load(tmp_path / "demo.gguf")
        for question in QUESTIONS.values():
            ours, theirs = model.scalings(model.encode_chat(question)), other.scalings(other.encode_chat(question))
            assert np.mean(np.abs(ours.values - theirs.values)) < 0.02
            assert model.chat(question, temperature=0.0) == other.chat(question, temperature=0.0)
