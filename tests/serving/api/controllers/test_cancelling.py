"""POST /v1/requests/{id}/cancel: whoever has a key and an id may end a request, wherever it is."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import httpx
import pytest

from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, TEXT, events_of, listening, running, wait_for

pytestmark = pytest.mark.anyio


async def live(engine: FakeEngine, count: int) -> None:
    while engine.live != count:
        await asyncio.sleep(0.001)


@pytest.mark.parametrize(("path", "body"), [(CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": ["a", "b"]})])
@pytest.mark.parametrize("base", ["/v1", ""])
async def test_a_request_is_cancelled_by_its_own_id(path: str, body: dict[str, Any], base: str) -> None:
    engine = FakeEngine("x", gate=threading.Event())
    async with running(engine) as client:
        asking = asyncio.create_task(client.post(path, json={**body, "n": 2}, headers={"X-Request-Id": "mine"}))
        await live(engine, 4 if path == TEXT else 2)
        response = await client.post(f"{base}/requests/mine/cancel")
        cancelled = await asyncio.wait_for(asking, 15)
        await live(engine, 0)
        assert engine.status.running == 0
        again = await client.post(f"{base}/requests/mine/cancel")
    assert response.json() == {"id": "mine", "cancelled": 1}
    assert (cancelled.status_code, cancelled.json()["error"]["code"]) == (499, "request_cancelled")
    assert (again.status_code, again.json()["error"]["code"]) == (404, "request_not_found")


async def test_all_requests_with_the_same_id_are_cancelled_and_no_others() -> None:
    engine = FakeEngine("x", gate=threading.Event())
    async with running(engine) as client:
        asked = [
            asyncio.create_task(client.post(CHAT, json={"messages": MESSAGES}, headers={"X-Request-Id": name}))
            for name in ("mine", "other", "mine")
        ]
        await live(engine, 3)
        assert (await client.post("/v1/requests/mine/cancel")).json()["cancelled"] == 2
        await live(engine, 1)
        assert engine.gate is not None
        engine.gate.set()
        statuses = [response.status_code for response in await asyncio.gather(*asked)]
    assert statuses == [499, 200, 499]


def test_a_stream_is_cancelled_by_the_id_of_its_response() -> None:
    engine = FakeEngine("x" * 200, delay=0.01)
    with listening(engine) as server, httpx.Client(base_url=server.url) as client:
        with client.stream("POST", CHAT, json={"messages": MESSAGES, "stream": True}) as stream:
            texts = stream.iter_text()
            begun = next(texts)
            first = json.loads(begun.partition("\n\n")[0].removeprefix("data: "))
            cancelled = httpx.post(f"{server.url}/v1/requests/{first['id']}/cancel", headers={"Connection": "close"})
            assert cancelled.json() == {"id": first["id"], "cancelled": 1}
            events = events_of(begun + "".join(texts))
        assert events[-1]["error"]["code"] == "request_cancelled"
        wait_for(lambda: engine.live == 0 and server.app.state.host.live_calls._by_id == {})


async def test_a_request_that_is_done_is_not_found() -> None:
    async with running(FakeEngine("ok")) as client:
        done = await client.post(CHAT, json={"messages": MESSAGES}, headers={"X-Request-Id": "mine"})
        for name in ("mine", done.json()["id"], "nobody"):
            response = await client.post(f"/v1/requests/{name}/cancel")
            assert response.status_code == 404
            assert name in response.json()["error"]["message"]


async def test_only_the_key_of_a_request_cancels_it() -> None:
    engine = FakeEngine("x", gate=threading.Event())
    async with running(engine, api_keys=("one", "two")) as client:
        headers = {"X-Request-Id": "mine", "X-Api-Key": "one"}
        asking = asyncio.create_task(client.post(CHAT, json={"messages": MESSAGES}, headers=headers))
        await live(engine, 1)
        assert (await client.post("/v1/requests/mine/cancel")).status_code == 401
        assert engine.live == 1
        other = await client.post("/v1/requests/mine/cancel", headers={"X-Api-Key": "two"})
        assert other.status_code == 404
        assert engine.live == 1
        own = await client.post("/v1/requests/mine/cancel", headers={"X-Api-Key": "one"})
        assert own.json()["cancelled"] == 1
        assert (await asking).status_code == 499
