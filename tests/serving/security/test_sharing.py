"""What callers share: no key waits behind the flood of another, and none learns what another asked."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from serving.api.service.service import Service
from serving.engine.engine import JaxEngine
from serving.engine.scheduler import Scheduler
from serving.engine.work import cache_key
from tests.serving.engine.test_engine import LENGTH, make_engine, make_runner
from tests.serving.fakes import CARD, FakeEngine, fake_service, prompt_text
from tests.serving.harness import CHAT, MESSAGES, TEXT, listening, running, wait_for, wait_until_ready

KEYS = ("flood", "honest")


def of(key: str) -> dict[str, str]:
    return {"X-Api-Key": key}


@pytest.fixture
def engine() -> Iterator[JaxEngine]:
    """The real one, over a tiny random model, with few slots."""
    engine = make_engine(make_runner(), queue_limit=64, warm_up=False)
    yield engine
    engine.drain(0)


def service(engine: JaxEngine) -> Service:
    return replace(fake_service(card=replace(CARD, max_model_len=LENGTH)), engine=engine)


@pytest.mark.slow
def test_fairness_a_key_that_floods_the_queue_does_not_starve_another(engine: JaxEngine) -> None:
    body: dict[str, Any] = {"prompt": "abc", "max_tokens": 100, "ignore_eos": True}
    with listening(service=service(engine), api_keys=KEYS, max_queue=64) as server:
        wait_until_ready(engine)
        with httpx.Client(base_url=server.url, timeout=120) as client:
            assert client.post(TEXT, json=body | {"max_tokens": 2}, headers=of("honest")).status_code == 200
            ended: list[tuple[float, str, int]] = []

            def ask(key: str, limit: int) -> None:
                response = httpx.post(
                    f"{server.url}{TEXT}", json=body | {"max_tokens": limit}, headers=of(key), timeout=120
                )
                ended.append((time.monotonic(), key, response.status_code))

            flood = [threading.Thread(target=ask, args=("flood", 100)) for _ in range(100)]
            for thread in flood:
                thread.start()
            wait_for(lambda: engine.status.waiting >= 56, 30)
            honest = [threading.Thread(target=ask, args=("honest", 10)) for _ in range(4)]
            for thread in honest:
                thread.start()
            for thread in (*honest, *flood):
                thread.join()
    order = [key for _, key, _ in sorted(ended)]
    statuses = {key: {status for _, each, status in ended if each == key} for key in KEYS}
    # The queue of the flooding key is full, that of the other is not; and it gets its share of the slots at once.
    assert statuses == {"flood": {200, 503}, "honest": {200}}
    refused = sum(status == 503 for _, _, status in ended)
    before = order[: max(index for index, key in enumerate(order) if key == "honest")].count("flood") - refused
    assert before <= 24, order


@pytest.mark.anyio
async def test_fairness_every_request_carries_its_caller() -> None:
    fake = FakeEngine("ok")
    async with running(fake, api_keys=KEYS) as client:
        for key in KEYS:
            for path in (CHAT, TEXT, "/completion"):
                body = {"messages": MESSAGES, "prompt": key, "n_predict": 2}
                assert (await client.post(path, json=body, headers=of(key))).status_code == 200
    assert [request.caller for request in fake.submitted] == [1, 1, 1, 2, 2, 2]
    open_to_all = FakeEngine("ok")
    async with running(open_to_all) as client:
        await client.post(TEXT, json={"prompt": "x"}, headers=of("any"))
    assert [request.caller for request in open_to_all.submitted] == [0]


@pytest.mark.anyio
async def test_fairness_prompts_that_take_long_take_turns() -> None:
    """One key sends many long prompts, the other a short one: it is encoded after one turn of each, not after all."""
    fake = FakeEngine("ok")
    card = replace(CARD, max_model_len=10**7)
    long = {"prompt": "word " * 400_000, "max_tokens": 1}
    async with running(service=fake_service(fake, card=card), api_keys=KEYS) as client:
        flood = [asyncio.create_task(client.post(TEXT, json=long, headers=of("flood"))) for _ in range(12)]
        while len(fake.submitted) < 1:
            await asyncio.sleep(0.001)
        await client.post(TEXT, json={"prompt": "short", "max_tokens": 1}, headers=of("honest"))
        submitted = [request.caller for request in fake.submitted]
        for task in flood:
            task.cancel()
        await asyncio.wait(flood)
    assert submitted.index(2) <= 6, submitted


@pytest.mark.anyio
async def test_timing_side_channel_each_key_shares_with_itself_only() -> None:
    """What the cache keeps has the caller in its key: exact tokens and callers are compared, and no hash stands for
    them."""
    fake = FakeEngine("ok")
    async with running(fake, api_keys=KEYS) as client:
        for key in (*KEYS, KEYS[0]):
            for asked in ({}, {"cache_salt": "s"}, {"cache_prompt": False}):
                body = {"prompt": "the same prompt", **asked}
                assert (await client.post(TEXT, json=body, headers=of(key))).status_code == 200
    found = [cache_key(request, across_callers=False) for request in fake.submitted]
    first, second, again = found[:3], found[3:6], found[6:]
    assert first[2] is second[2] is None
    assert first == again
    assert len({*first[:2], *second[:2]}) == 4


@pytest.mark.slow
def test_timing_side_channel_a_prompt_of_another_key_runs_in_full(
    engine: JaxEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the real engine: as many chunks for the same prompt, whoever else sent it before; none for one's own."""
    chunks: list[int] = []
    record_chunks(monkeypatch, chunks)
    with listening(service=service(engine), api_keys=KEYS) as server:
        wait_until_ready(engine)
        counts: list[int] = []
        cached: list[int] = []
        for key in (*KEYS, KEYS[0]):
            chunks.clear()
            body = {"prompt": "the same prompt " * 8, "max_tokens": 1}
            response = httpx.post(f"{server.url}{TEXT}", json=body, headers=of(key), timeout=60)
            assert response.status_code == 200
            counts.append(sum(chunks))
            cached.append(response.json()["usage"]["prompt_tokens_details"]["cached_tokens"])
    assert counts[0] == counts[1] >= len("the same prompt " * 8) - 1
    assert counts[2] == 0
    assert cached == [0, 0, response.json()["usage"]["prompt_tokens"] - 1]


def record_chunks(monkeypatch: pytest.MonkeyPatch, chunks: list[int]) -> None:
    """Record the sizes of all prefill chunks that the scheduler plans."""
    plan = Scheduler.next_round

    def planned(self: Any) -> Any:
        round_ = plan(self)
        chunks.extend(chunk.size for _, chunk in round_.prefills)
        return round_

    monkeypatch.setattr(Scheduler, "next_round", planned)


@pytest.mark.anyio
async def test_hash_collision_equal_and_similar_prompts_get_their_own_responses() -> None:
    fake = FakeEngine(lambda request: prompt_text(request)[::-1])
    prompts = ["a", "b", "ab", "ba", "a" * 64, "a" * 63 + "b"]
    async with running(fake, api_keys=KEYS) as client:
        responses = await asyncio.gather(
            *(client.post(TEXT, json={"prompt": prompt}, headers=of(key)) for prompt in prompts for key in KEYS)
        )
    texts = [response.json()["choices"][0]["text"] for response in responses]
    assert texts == [prompt[::-1] for prompt in prompts for _ in KEYS]
