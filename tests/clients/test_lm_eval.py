"""lm-evaluation-harness: `local-completions` gives the log-likelihoods that the model has offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mistral_jax
from mistral_jax.notebook.language_model import LanguageModel
from tests.clients.conftest import KEY

lm_eval = pytest.importorskip("lm_eval")
pytest.importorskip("lm_eval.models.openai_completions")
instances = pytest.importorskip("lm_eval.api.instance")

REQUESTS = [
    ("The capital of Italy is", " Rome"),
    ("The capital of Italy is", " a city that lies on a river, and on seven hills."),
    ("", "Once upon a time"),
    ("日本語 🎉", " ok?"),
    ("word" + " word" * 300, " and more"),
]


@pytest.fixture(scope="module")
def offline(model_folder: Path) -> LanguageModel:
    return mistral_jax.load(model_folder, slots=1, length=1024, progress=False)


@pytest.fixture(params=[1, 4])
def harness(request: pytest.FixtureRequest, url: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Its model for servers of completions, with one request at a time, and with batches of four."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return lm_eval.models.openai_completions.LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model="tiny",
        tokenizer_backend="auto",
        auth_token=KEY,
        batch_size=request.param,
        max_retries=1,
        max_length=1024,
    )


def instance(kind: str, *arguments: Any) -> Any:
    return instances.Instance(request_type=kind, doc={}, arguments=arguments, idx=0)


def expected(offline: LanguageModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    logits = np.asarray(offline.logits(context + continuation), np.float64)[len(context) - 1 : -1]  # [T, V]
    log_normaliser = np.logaddexp.reduce(logits, axis=-1)
    chosen = logits[np.arange(len(continuation)), continuation]
    return float((chosen - log_normaliser).sum()), bool((logits.argmax(-1) == continuation).all())


def test_log_likelihoods_equal_those_offline(harness: Any, offline: LanguageModel) -> None:
    # It finds that the server has a tokenizer of its own for it.
    assert harness.tokenizer_backend == "remote"
    assert harness.prefix_token_id == offline.tokenizer.bos_id
    told = harness.loglikelihood([instance("loglikelihood", *request) for request in REQUESTS])
    for (context, continuation), result in zip(REQUESTS, told, strict=True):
        whole = offline.tokenizer.encode(context + continuation)
        start = offline.tokenizer.encode(context) if context else [offline.tokenizer.bos_id]
        rest = whole[len(start) :] if context else whole
        likelihood, greedy = expected(offline, start, rest)
        assert result[0] == pytest.approx(likelihood, abs=1e-4)
        assert result[1] == greedy


def test_a_continuation_that_the_model_would_say_is_greedy(harness: Any, offline: LanguageModel) -> None:
    context = offline.encode("The capital of Italy is")
    for _ in range(4):
        logits = np.asarray(offline.logits(context))
        context.append(int(logits[-1].argmax()))
    start, rest = context[:-4], context[-4:]
    [(likelihood, greedy)] = harness._loglikelihood_tokens([(("", ""), start, rest)])
    assert greedy
    assert likelihood == pytest.approx(expected(offline, start, rest)[0], abs=1e-4)


def test_rolling_log_likelihoods_equal_those_offline(harness: Any, offline: LanguageModel) -> None:
    texts = ["The capital of Italy is Rome.", "word " * 100]
    told = harness.loglikelihood_rolling([instance("loglikelihood_rolling", text) for text in texts])
    for text, result in zip(texts, told, strict=True):
        likelihood, _ = expected(offline, [offline.tokenizer.bos_id or 0], offline.tokenizer.encode(text))
        assert result == pytest.approx(likelihood, abs=1e-4)


def test_texts_are_generated_as_offline(harness: Any, offline: LanguageModel) -> None:
    [text] = harness.generate_until(
        [instance("generate_until", "The capital of Italy is", {"until": ["\n\n"], "max_gen_toks": 12})]
    )
    tokens = offline.tokenizer.encode("The capital of Italy is")
    assert text == offline.generate(tokens, temperature=0, max_tokens=12, stop=["\n\n", "</s>"]).text


@pytest.mark.parametrize("harness", [4], indirect=True)
def test_a_task_from_end_to_end(harness: Any, offline: LanguageModel, tmp_path: Path) -> None:
    """Multiple choice over a file of its own: the harness chooses what the model's logits choose."""
    documents = [
        {"question": "The capital of Italy is", "choices": ["Rome", "Paris", "Oslo"], "gold": 0},
        {"question": "Bread is made of", "choices": ["flour", "stone", "glass"], "gold": 0},
        {"question": "Snow is", "choices": ["hot", "white", "loud"], "gold": 1},
    ]
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    task = {
        "task": "capitals",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{gold}}",
        "metric_list": [{"metric": "acc"}],
    }
    results = lm_eval.simple_evaluate(model=harness, tasks=[task], bootstrap_iters=0)
    chosen: list[int] = []
    for document in documents:
        start = offline.tokenizer.encode(str(document["question"]))
        likelihoods = [
            expected(offline, start, offline.tokenizer.encode(f"{document['question']} {choice}")[len(start) :])[0]
            for choice in document["choices"]
        ]
        chosen.append(int(np.argmax(likelihoods)))
    right = sum(found == document["gold"] for found, document in zip(chosen, documents, strict=True))
    assert results["results"]["capitals"]["acc,none"] == pytest.approx(right / len(documents))
    samples = sorted(results["samples"]["capitals"], key=lambda sample: sample["doc_id"])
    assert [int(np.argmax([float(r[0]) for r in sample["filtered_resps"]])) for sample in samples] == chosen
