"""The evaluation's way of counting agrees with generating, and the bundled model is whole and worth its bytes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from demo.encoding import encode, load_tokenizer
from demo.evaluate import Case, cases, exact, generate, load
from demo.tokenizer import MODEL_FOLDER

WEIGHTS = MODEL_FOLDER / "model.safetensors"
bundled = pytest.mark.skipif(not WEIGHTS.exists(), reason="the demo model is not trained yet")


def test_an_answer_is_exact_if_and_only_if_it_is_what_greedy_decoding_says() -> None:
    tokenizer = load_tokenizer(MODEL_FOLDER)
    question, answer, before = "What is JAX?", "A library.", (("Hello", "Hi!"),)
    text = encode(tokenizer, [*before, (question, answer)]).tokens

    def predict(tokens: np.ndarray) -> np.ndarray:
        """A model that knows this one conversation by heart."""
        best = np.zeros_like(tokens)
        best[:, : len(text) - 1] = text[1:]
        return best

    assert generate(predict, tokenizer, question, before) == answer
    told = [("no", answer), (answer + " Yes.", "A"), (answer,)]
    asked = [Case(row="", question=question, answers=answers, before=before) for answers in told]
    assert exact(predict, tokenizer, asked) == [True, False, True]


@bundled
def test_the_bundled_model_is_small_and_in_the_ordinary_layout() -> None:
    files = {path.name: path.stat().st_size for path in MODEL_FOLDER.iterdir()}
    assert {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.model",
        "tokenizer_config.json",
    } <= (files.keys())
    assert sum(files.values()) <= 12_000_000
    config = json.loads((MODEL_FOLDER / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["MistralForCausalLM"]
    assert config["model_type"] == "mistral"


@pytest.mark.skipif(not (MODEL_FOLDER / "EVALUATION.json").exists(), reason="the demo model is not evaluated yet")
@pytest.mark.parametrize("row", ["facts, new pairs", "help, new pairs", "declines: skills kept aside"])
def test_the_bundled_model_answers_phrasings_that_it_has_never_seen(row: str) -> None:
    predict, tokenizer = load(MODEL_FOLDER)
    asked = [case for case in cases(limit=64) if case.row == row]
    right = exact(predict, tokenizer, asked)
    assert sum(right) >= 0.85 * len(right)
