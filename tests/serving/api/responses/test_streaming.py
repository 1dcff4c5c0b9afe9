"""Server-sent events: the bytes, and that a streamed answer is the unstreamed one."""

from __future__ import annotations

import threading
from typing import Any

import httpx
import pytest

from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, TEXT, events_of, listening, running, usage_of

pytestmark = pytest.mark.anyio


async def stream(engine: FakeEngine | None = None, *, path: str = CHAT, server: Any = None, **body: Any) -> Any:
    given = {"messages": MESSAGES} if path == CHAT else {"prompt": "x"}
    async with running(engine, **(server or {})) as client:
        return await client.post(path, json={**given, "stream": True, **body})


async def test_bytes_of_a_chat_stream() -> None:
    response = await stream(FakeEngine("Hö"))
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert "content-length" not in response.headers
    chunks = events_of(response.text)
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    assert all(chunk["object"] == "chat.completion.chunk" and "usage" not in chunk for chunk in chunks)
    choices = [chunk["choices"] for chunk in chunks]
    empty = {"index": 0, "logprobs": None, "finish_reason": None}
    assert choices == [
        [empty | {"delta": {"role": "assistant", "content": None}}],
        [empty | {"delta": {"content": "H"}}],
        [empty | {"delta": {"content": "ö"}}],
        [empty | {"delta": {}, "finish_reason": "stop"}],
    ]


async def test_usage_chunk_comes_last_and_the_others_carry_null() -> None:
    chunks = events_of((await stream(FakeEngine("Hi"), stream_options={"include_usage": True})).text)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == usage_of(9, 3)
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_continuous_usage_has_the_counts_of_each_choice_so_far() -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    prompts = ["one", "longer"]
    response = await stream(FakeEngine("Hi"), path=TEXT, prompt=prompts, n=2, stream_options=options)
    *chunks, last = events_of(response.text)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 12)
    counts: dict[int, list[int]] = {}
    for chunk in chunks:
        (choice,) = chunk["choices"]
        usage = chunk["usage"]
        assert usage["prompt_tokens"] == 1 + len(prompts[choice["index"] // 2])
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        counts.setdefault(choice["index"], []).append(usage["completion_tokens"])
    assert counts == {index: [1, 2, 3] for index in range(4)}


async def test_continuous_usage_without_the_last_chunk() -> None:
    chunks = events_of((await stream(FakeEngine("Hi"), stream_options={"continuous_usage_stats": True})).text)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3]
    assert all(chunk["choices"] for chunk in chunks)


async def test_bytes_of_a_completions_stream() -> None:
    chunks = events_of((await stream(FakeEngine("ab"), path=TEXT, echo=True, max_tokens=2)).text)
    assert all(chunk["object"] == "text_completion" for chunk in chunks)
    told = [(choice["text"], choice["finish_reason"]) for chunk in chunks for choice in chunk["choices"]]
    assert told == [("x", None), ("a", None), ("b", None), ("", "length")]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize(
    "body", [{}, {"max_tokens": 7}, {"stop": ["ld"]}, {"n": 3}, {"logprobs": 1}, {"logprobs": 2, "n": 2}]
)
async def test_streamed_equals_unstreamed(path: str, body: dict[str, Any]) -> None:
    if path == CHAT and "logprobs" in body:
        body = {**body, "logprobs": True, "top_logprobs": body["logprobs"]}
    given = {"messages": MESSAGES} if path == CHAT else {"prompt": ["one", "two"]}
    reply = FakeEngine(lambda request: f"{len(request.prompt)} {request.params.seed}: Hello, wörld! 🙂 ''")
    async with running(reply) as client:
        request = {**given, **body, "seed": 5}
        whole = (await client.post(path, json=request)).json()
        usage = {"stream_options": {"include_usage": True}}
        chunks = events_of((await client.post(path, json={**request, "stream": True, **usage})).text)
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        own = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert [part["finish_reason"] for part in own if part["finish_reason"]] == [choice["finish_reason"]]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        logprobs = [part["logprobs"] for part in own if part["logprobs"]]
        if path == CHAT:
            assert sum("role" in part["delta"] for part in own) == 1
            assert "".join(part["delta"].get("content") or "" for part in own) == choice["message"]["content"]
            joined = [token for part in logprobs for token in part["content"]]
            assert joined == (choice["logprobs"]["content"] if choice["logprobs"] else [])
        else:
            assert "".join(part["text"] for part in own) == choice["text"]
            for column in choice["logprobs"] or {}:
                assert [item for part in logprobs for item in part[column]] == choice["logprobs"][column]


async def test_a_failure_half_way_is_an_error_event_and_done() -> None:
    response = await stream(FakeEngine("some text", fail_after=3))
    assert response.status_code == 200
    events = events_of(response.text)
    assert [event["choices"][0]["delta"].get("content") for event in events[1:-1]] == ["s", "o", "m"]
    error = events[-1]["error"]
    assert (error["type"], error["code"]) == ("server_error", "generation_failed")
    assert "/opt" not in error["message"]


async def test_the_servers_time_limit_ends_a_stream_with_an_error_event() -> None:
    engine = FakeEngine("slow", delay=0.2)
    events = events_of((await stream(engine, server={"request_timeout": 0.1})).text)
    assert events[-1]["error"]["code"] == "request_timeout"
    assert engine.cancelled


def test_comments_keep_a_waiting_stream_open() -> None:
    gate = threading.Event()
    body = {"messages": MESSAGES, "stream": True}
    with (
        listening(FakeEngine("x", gate=gate), keep_alive=0.03) as server,
        httpx.Client(timeout=60) as client,
        client.stream("POST", server.url + CHAT, json=body) as response,
    ):
        text = ""
        for part in response.iter_text():
            text += part
            if text.count(": keep-alive\n\n") >= 2:
                gate.set()
    assert events_of(text)[1]["choices"][0]["delta"] == {"content": "x"}


async def test_refusals_come_before_the_stream_begins() -> None:
    response = await stream(model="other")
    assert (response.status_code, response.headers["content-type"]) == (404, "application/json")
    full = FakeEngine("x", slots=1, queue_limit=1)
    response = await stream(full, n=3)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "queue_full")
    assert response.headers["retry-after"] == "3"


async def test_one_engine_round_wakes_the_loop_once() -> None:
    engine = FakeEngine("0123456789")
    receivers = set()
    submit = engine.submit
    engine.submit = lambda requests, deliver: (receivers.add(deliver), submit(requests, deliver))[1]  # type: ignore[method-assign]
    async with running(engine) as client:
        for _ in range(3):
            await client.post(CHAT, json={"messages": MESSAGES, "n": 2})
    assert len(receivers) == 1
