"""Scores of prompts by the real server, asked for as evaluation harnesses do."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path

import httpx
import jax
import numpy as np
import openai
import pytest

import mistral_jax
from tests.integration.conftest import ServerProcess
from tests.serving.api.responses.scores.test_echo import loglikelihood

pytestmark = pytest.mark.slow(by="file")

# What a well-known harness sends, beside the prompts.
HARNESS = {"temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True, "model": "demo"}
TEXTS = ["The capital of Italy is Rome.", "Hello", "What is a KV cache? It holds keys and values.", "日本語 🎉 ok?"]


@pytest.fixture
def http(server: ServerProcess):
    with httpx.Client(base_url=server.url, timeout=120) as client:
        yield client


def complete(http: httpx.Client, **body) -> dict:
    response = http.post("/v1/completions", json={**HARNESS, **body})
    assert response.status_code == 200, response.text
    return response.json()


def test_a_harness_gets_the_likelihood_of_continuations(http: httpx.Client):
    """Token ids, of many contexts at once. Where the continuation is what the model would say, it is called greedy."""
    contexts = [[1, *range(300, 300 + 7 * i)] for i in range(1, 12)]
    asked = [[*context, 40 + i, 41, 42] for i, context in enumerate(contexts)]
    body = complete(http, prompt=asked)
    assert body["usage"]["completion_tokens"] == len(asked)
    for prompt, context, choice in zip(asked, contexts, body["choices"], strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(prompt) + 1
        told, greedy = loglikelihood(choice, len(context))
        assert told < 0
        [alone] = complete(http, prompt=[prompt])["choices"]
        assert loglikelihood(alone, len(context)) == (told, greedy)
        # A continuation of no tokens is all that the model would say of it.
        assert loglikelihood(alone, len(prompt)) == (0, True)


def test_a_batch_is_scored_as_each_prompt_alone(http: httpx.Client):
    together = complete(http, prompt=TEXTS, max_tokens=0, logprobs=5)
    assert together["usage"]["completion_tokens"] == 0
    for text, choice in zip(TEXTS, together["choices"], strict=True):
        [alone] = complete(http, prompt=text, max_tokens=0, logprobs=5)["choices"]
        assert {**alone, "index": 0} == {**choice, "index": 0}
        logprobs = choice["logprobs"]
        assert (choice["text"], choice["finish_reason"]) == (text, "length")
        assert (logprobs["token_logprobs"][0], logprobs["top_logprobs"][0]) == (None, None)
        assert all(value <= 0 for value in logprobs["token_logprobs"][1:])
        # Each token's own text stands where it is said to begin.
        offsets = [*logprobs["text_offset"], len(text)]
        for token, (start, end) in zip(logprobs["tokens"], pairwise(offsets), strict=True):
            assert end == start or "\ufffd" in token or text[start:end] in (token, token.removeprefix(" "))


def test_generated_tokens_are_scored_as_they_were_told_when_generated(http: httpx.Client):
    generated = complete(http, prompt=TEXTS[0], max_tokens=8, logprobs=3, echo=True, temperature=1, ignore_eos=True)
    [choice] = generated["choices"]
    again = complete(http, prompt=choice["text"], max_tokens=0, logprobs=3)["choices"][0]["logprobs"]
    told = choice["logprobs"]
    if again["tokens"] == told["tokens"]:
        assert again == told
    assert len(told["tokens"]) == generated["usage"]["total_tokens"]


def test_streamed_scores_equal_unstreamed_ones(server: ServerProcess):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        asked = {"model": "demo", "prompt": TEXTS, "echo": True, "logprobs": 2, "max_tokens": 3, "temperature": 0}
        whole = client.completions.create(**asked)
        chunks = list(client.completions.create(**asked, stream=True))
    for choice in whole.choices:
        own = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in own) == choice.text
        told = [part.logprobs for part in own if part.logprobs]
        for column in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [item for part in told for item in getattr(part, column)] == getattr(choice.logprobs, column)


def test_prompt_logprobs_are_those_of_an_echo(http: httpx.Client):
    echoed = complete(http, prompt=TEXTS, max_tokens=0, logprobs=4)
    own = complete(http, prompt=TEXTS, max_tokens=1, logprobs=None, echo=False, prompt_logprobs=4)
    for told, choice in zip(echoed["choices"], own["choices"], strict=True):
        entries = choice["prompt_logprobs"]
        assert entries[0] is None
        assert choice["logprobs"] is None
        chosen = [next(iter(entry.values())) for entry in entries[1:]]
        assert [entry["logprob"] for entry in chosen] == told["logprobs"]["token_logprobs"][1:]
        assert [entry["decoded_token"] for entry in chosen] == told["logprobs"]["tokens"][1:]
        for entry, top in zip(entries[1:], told["logprobs"]["top_logprobs"][1:], strict=True):
            assert {value["logprob"] for value in entry.values()} == set(top.values())
            ranks = [value["rank"] for value in entry.values()]
            assert {1, 2, 3, 4} <= set(ranks)
            assert len(entry) == (5 if ranks[0] > 4 else 4)


def test_scores_are_those_of_the_model_offline(http: httpx.Client):
    model = mistral_jax.load("demo", slots=1, length=128, progress=False)
    chat = {"messages": [{"role": "user", "content": TEXTS[2]}], "max_tokens": 1, "return_token_ids": True}
    chat["adapter"] = "base"
    told = http.post("/v1/chat/completions", json={**chat, "prompt_logprobs": 0}).json()
    expected = model.logprobs(told["prompt_token_ids"])
    table = np.asarray(jax.nn.log_softmax(model.logits(told["prompt_token_ids"]), axis=-1))
    for place, entry in enumerate(told["prompt_logprobs"][1:], start=1):
        ((token, value),) = entry.items()
        assert int(token) == told["prompt_token_ids"][place]
        # In bfloat16, a whole pass rounds other sums than chunks do.
        assert value["logprob"] == pytest.approx(expected.logprobs[place], abs=0.05, rel=0.01)
        nearly = table[place - 1] > table[place - 1, int(token)] + 0.1
        above = table[place - 1] > table[place - 1, int(token)] - 0.1
        assert nearly.sum() <= value["rank"] - 1 <= above.sum()


def test_what_ends_and_what_may_be_chosen(http: httpx.Client):
    """The fields that need the model, the tokenizer and the sampler together."""
    asked = {"prompt": TEXTS[0], "max_tokens": 12, "logprobs": None, "echo": False, "return_token_ids": True}
    free = complete(http, **asked, min_tokens=12)["choices"][0]
    ids = free["token_ids"]
    assert (free["finish_reason"], len(ids)) == ("length", 12)
    last = max(i for i in range(12) if ids[i] not in ids[:i])
    stopped = complete(http, **asked, min_tokens=last, stop_token_ids=[ids[last]])["choices"][0]
    assert (stopped["finish_reason"], stopped["stop_reason"]) == ("stop", ids[last])
    assert stopped["token_ids"] == ids[: last + 1]
    only = complete(http, **asked, allowed_token_ids=[300, 301, 302], dry_multiplier=5, dry_allowed_length=1)
    assert set(only["choices"][0]["token_ids"]) <= {300, 301, 302}
    continued = http.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The capital of"}],
            "continue_final_message": True,
            "max_tokens": 4,
            "return_token_ids": True,
        },
    ).json()
    assert continued["prompt_token_ids"][-1] not in (1, 2)
    best = complete(http, **{**asked, "temperature": 1.5, "best_of": 4, "n": 2})
    assert len(best["choices"]) == 2
    unusable = http.post("/v1/completions", json={"prompt": "x", "suffix": "y"})
    assert unusable.json()["error"]["param"] == "suffix"


ASK = """
import sys, httpx
url, body, answer = sys.argv[1:]
with open(body, "rb") as file:
    response = httpx.post(url, content=file.read(), headers={"Content-Type": "application/json"}, timeout=300)
assert response.status_code == 200, response.text
with open(answer, "wb") as file:
    file.write(response.content)
"""


@pytest.mark.slow
def test_health_is_told_while_long_prompts_are_scored(server: ServerProcess, http: httpx.Client, tmp_path: Path):
    context = http.get("/v1/models").json()["data"][0]["max_model_len"]
    took, done = list[float](), threading.Event()

    def watch() -> None:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            while not done.wait(0.1):
                start = time.monotonic()
                assert client.get("/health").status_code == 200
                took.append(time.monotonic() - start)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        time.sleep(2)
        idle = max(took, default=0.0)
        # One and a half million entries.
        prompts = [[1, *(3 + i % 1500 for i in range(context - 1))]] * (1_500_000 // (21 * context))
        sent, got = tmp_path / "body.json", tmp_path / "answer.json"
        sent.write_text(json.dumps({**HARNESS, "prompt": prompts, "logprobs": 20, "max_tokens": 0}))
        # By another process: reading so long an answer would keep this one from asking.
        subprocess.run([sys.executable, "-c", ASK, f"{server.url}/v1/completions", str(sent), str(got)], check=True)
    finally:
        done.set()
        thread.join()
    body = json.loads(got.read_bytes())
    assert len({str(choice["logprobs"]) for choice in body["choices"]}) == 1
    # A quarter of a second on a machine of its own; what a busy one takes is not the server's.
    assert max(took) < 3 + 3 * idle
    assert server.health()["running"] == 0
