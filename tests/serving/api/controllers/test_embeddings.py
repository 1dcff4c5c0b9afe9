"""POST /v1/embeddings: OpenAI's fields and shapes; many texts, more than the queue has room for."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import numpy as np
import openai
import pytest

from mistral_jax.adapters.choice import AdapterChoice
from serving.api.service.served_models import ServedModels
from serving.engine.messages import Work
from tests.serving.api.service.test_served_models import models
from tests.serving.fakes import BOS, HIDDEN, OFFSET, FakeEngine, fake_service, fake_vector
from tests.serving.harness import MESSAGES, listening, running

pytestmark = pytest.mark.anyio

PATH = "/v1/embeddings"
A, B = 97 + OFFSET, 98 + OFFSET


async def ask(
    body: dict[str, Any], engine: FakeEngine | None = None, *, served: ServedModels | None = None, **settings: Any
) -> Any:
    async with running(service=fake_service(engine or FakeEngine(), models=served), **settings) as client:
        return await client.post(PATH, json=body)


def unit(vector: np.ndarray, dimensions: int | None = None) -> np.ndarray:
    kept = vector[:dimensions]
    return kept / np.linalg.norm(kept)


def vectors(response: Any) -> np.ndarray:
    assert response.status_code == 200, response.text
    data = response.json()["data"]
    assert [(each["object"], each["index"]) for each in data] == [("embedding", i) for i in range(len(data))]
    return np.array([each["embedding"] for each in data])


async def test_a_text_has_a_vector_of_length_one() -> None:
    engine = FakeEngine()
    response = await ask({"input": "ab", "model": "default"}, engine)
    [request] = engine.submitted
    assert (request.work, request.prompt, request.params.max_tokens) == (Work.EMBED, (BOS, A, B), 0)
    assert request.pooling == "mean"
    np.testing.assert_allclose(vectors(response), [unit(fake_vector(request))], rtol=1e-6)
    body = response.json()
    assert (body["object"], body["model"]) == ("list", "acme/tiny-mistral")
    assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}


@pytest.mark.parametrize(
    ("given", "prompts"),
    [
        ("ab", [(BOS, A, B)]),
        (["a", "b"], [(BOS, A), (BOS, B)]),
        ([A, B], [(A, B)]),
        ([[A], [B, A]], [(A,), (B, A)]),
        ("", [(BOS,)]),
    ],
)
async def test_forms_of_input(given: Any, prompts: list[tuple[int, ...]]) -> None:
    engine = FakeEngine()
    response = await ask({"input": given}, engine)
    assert [request.prompt for request in engine.submitted] == prompts
    assert len(vectors(response)) == len(prompts)


async def test_base64_has_the_same_float32_values() -> None:
    as_float = vectors(await ask({"input": ["a", "b"]})).astype(np.float32)
    response = await ask({"input": ["a", "b"], "encoding_format": "base64"})
    for row, each in zip(as_float, response.json()["data"], strict=True):
        np.testing.assert_array_equal(np.frombuffer(base64.b64decode(each["embedding"]), "<f4"), row)


async def test_dimensions_are_cut_and_scaled_again() -> None:
    engine = FakeEngine()
    found = vectors(await ask({"input": "a", "dimensions": 2}, engine))
    np.testing.assert_allclose(found, [unit(fake_vector(engine.submitted[0]), 2)], rtol=1e-6)
    assert found.shape == (1, 2)


async def test_the_pooling_is_the_requests_or_the_servers() -> None:
    for body, settings, pooling in (
        ({"pooling": "last"}, {}, "last"),
        ({}, {"pooling": "last"}, "last"),
        ({"pooling": "mean"}, {"pooling": "last"}, "mean"),
    ):
        engine = FakeEngine()
        assert (await ask({"input": "a", **body}, engine, **settings)).status_code == 200
        assert engine.submitted[0].pooling == pooling


async def test_adapters_and_mixtures_have_embeddings_of_their_own() -> None:
    for body, choice in (
        ({}, AdapterChoice(xlora=True)),
        ({"model": "poet"}, AdapterChoice(weights=((0, 1.0),))),
        ({"adapters": {"poet": 0.5, "cook": 2}}, AdapterChoice(weights=((0, 0.5), (1, 2.0)))),
        ({"lora": [{"id": 2, "scale": 1}]}, AdapterChoice(weights=((2, 1.0),))),
        ({"adapter": "base"}, AdapterChoice()),
    ):
        engine = FakeEngine()
        assert (await ask({"input": "a", **body}, engine, served=models())).status_code == 200
        assert engine.submitted[0].choice == choice


async def test_more_texts_than_the_queue_has_room_for_come_in_order() -> None:
    engine = FakeEngine(slots=2, queue_limit=5)
    texts = [chr(97 + i % 26) * (1 + i // 26) for i in range(70)]
    found = vectors(await ask({"input": texts}, engine, max_seqs=2, max_queue=5))
    assert len(engine.submitted) == 70
    np.testing.assert_allclose(found, [unit(fake_vector(request)) for request in engine.submitted], rtol=1e-6)
    assert [request.prompt[-1] for request in engine.submitted] == [ord(text[-1]) + OFFSET for text in texts]


async def test_a_queue_that_is_full_refuses_at_first_and_is_waited_for_later() -> None:
    gate = threading.Event()
    full = FakeEngine(slots=1, queue_limit=0, gate=gate)
    async with running(full, max_seqs=1) as client:
        waiting = asyncio.create_task(client.post("/v1/chat/completions", json={"messages": MESSAGES}))
        while full.live < 1:
            await asyncio.sleep(0.001)
        refused = await client.post(PATH, json={"input": "a"})
        gate.set()
        await waiting
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")

    class Busy(FakeEngine):
        def submit(self, requests: Any, deliver: Any) -> None:
            self.tries = getattr(self, "tries", 0) + 1
            if self.tries == 2:
                self.queue_limit, kept = -self.slot_count, self.queue_limit
                try:
                    super().submit(requests, deliver)
                finally:
                    self.queue_limit = kept
            super().submit(requests, deliver)

    busy = Busy(slots=2)
    assert len(vectors(await ask({"input": ["a"] * 20}, busy, max_seqs=2))) == 20
    assert busy.tries == 4


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({}, "input", "required"),
        ({"input": []}, "input", "empty list"),
        ({"input": [[]]}, "input", "empty list"),
        ({"input": ["a", 3]}, "input", "cannot be mixed"),
        ({"input": [10**6]}, "input", "outside the vocabulary"),
        ({"input": "x" * 300}, "input", "maximum context length is 256 tokens"),
        ({"input": ["a"] * 3000}, "input", "2048"),
        ({"input": "a", "dimensions": 0}, "dimensions", f"expected 1 to {HIDDEN}"),
        ({"input": "a", "dimensions": HIDDEN + 1}, "dimensions", f"expected 1 to {HIDDEN}"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "hex"),
        ({"input": "a", "pooling": "max"}, "pooling", "max"),
        ({"input": "a", "adapter": "nobody"}, "adapter", "no adapters"),
        ({"input": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens", "not supported"),
        ({"messages": MESSAGES, "input": "a"}, "messages", "not supported"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(body: dict[str, Any], param: str, told: str) -> None:
    engine = FakeEngine()
    response = await ask(body, engine)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, param) if body else response.status_code == 400
    assert told in error["message"]
    assert "prompt" not in error["message"] or param != "input"
    assert engine.submitted == []


async def test_a_text_may_fill_the_whole_context_and_a_longer_one_is_cut_where_the_server_cuts() -> None:
    assert (await ask({"input": [A] * 256})).status_code == 200
    too_long = await ask({"input": [A] * 257})
    error = too_long.json()["error"]
    assert (error["code"], error["n_prompt_tokens"], error["n_ctx"]) == ("context_length_exceeded", 257, 256)
    engine = FakeEngine()
    assert (await ask({"input": "x" * 400 + "a"}, engine, truncate_sequence=True)).status_code == 200
    assert (engine.submitted[0].prompt[0], engine.submitted[0].prompt[-1]) == (BOS, A)
    assert len(engine.submitted[0].prompt) == 256


async def test_embeddings_that_are_turned_off_say_so() -> None:
    response = await ask({"input": "a"}, pooling="none")
    assert (response.status_code, "--pooling" in response.json()["error"]["message"]) == (501, True)


async def test_a_request_is_cancelled_by_its_id_and_a_client_that_leaves_frees_the_slots() -> None:
    engine = FakeEngine(gate=threading.Event())
    async with running(engine) as client:
        asking = asyncio.create_task(client.post(PATH, json={"input": "a"}, headers={"X-Request-Id": "mine"}))
        while engine.live < 1:
            await asyncio.sleep(0.001)
        assert (await client.post("/v1/requests/mine/cancel")).json()["cancelled"] == 1
        assert (await asking).status_code == 499
        while engine.live:
            await asyncio.sleep(0.001)


async def test_a_vector_of_numbers_that_are_none_is_an_error() -> None:
    engine = FakeEngine(fail_after=0)
    response = await ask({"input": ["a", "b"]}, engine)
    assert (response.status_code, response.json()["error"]["code"]) == (500, "generation_failed")


def test_the_openai_client_reads_them_in_both_formats() -> None:
    with listening(FakeEngine()) as server, openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        plain = client.embeddings.create(model="default", input=["a", "b"])
        listed = client.embeddings.create(model="default", input=["a", "b"], encoding_format="float")
        short = client.embeddings.create(model="default", input="a", dimensions=3)
    assert [each.embedding for each in plain.data] == [pytest.approx(each.embedding, rel=1e-6) for each in listed.data]
    assert len(short.data[0].embedding) == 3
    assert plain.usage.prompt_tokens == plain.usage.total_tokens == 4
