"""Clients that leave, stall or come in crowds, on a real port."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from typing import Any

import httpx
import pytest

import serving.api.responses.streaming
from tests.serving.fakes import FakeEngine, prompt_text
from tests.serving.harness import CHAT, MESSAGES, TEXT, events_of, listening, wait_for


def head_of(path: str, length: int) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""]).encode()


def raw_request(url: str, path: str, body: dict[str, Any]) -> socket.socket:
    """A connection that has sent a request and reads nothing yet."""
    host, port = url.removeprefix("http://").split(":")
    content = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)), timeout=5)
    connection.sendall(head_of(path, len(content)) + content)
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_leaving_cancels_the_answer(path: str, stream: bool) -> None:
    engine = FakeEngine("x" * 200, delay=0.01)
    body = {"stream": stream, "n": 2} | ({"messages": MESSAGES} if path == CHAT else {"prompt": "a"})
    with listening(engine) as server:
        connection = raw_request(server.url, path, body)
        wait_for(lambda: engine.rounds > 3)
        assert engine.live == 2
        connection.close()
        wait_for(lambda: engine.live == 0)
        assert set(engine.cancelled) == {request.request_id for request in engine.submitted}
        assert server.app.state.host.router.live == 0


def test_leaving_while_waiting_in_the_queue_cancels_too() -> None:
    engine = FakeEngine("x", gate=threading.Event())
    with listening(engine) as server:
        connection = raw_request(server.url, CHAT, {"messages": MESSAGES, "stream": True})
        wait_for(lambda: engine.live == 1)
        connection.close()
        wait_for(lambda: engine.live == 0)


def test_leaving_in_the_middle_of_the_body_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    engine = FakeEngine()
    with listening(engine) as server:
        host, port = server.url.removeprefix("http://").split(":")
        connection = socket.create_connection((host, int(port)), timeout=5)
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
        )
        connection.sendall(head.encode() + b'{"mess')
        wait_for(lambda: server.server.server_state.total_requests == 0 and server.server.server_state.tasks)
        connection.close()
        wait_for(lambda: not server.server.server_state.tasks)
        assert httpx.get(f"{server.url}/health").status_code == 200
    assert engine.submitted == []
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_client_that_does_not_read_loses_its_stream_not_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.api.responses.streaming, "SEND_TIMEOUT", 0.2)
    engine = FakeEngine(lambda _request: "x" * 240)
    with listening(engine) as server:
        body = {"messages": MESSAGES, "stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}
        connection = raw_request(server.url, CHAT, body)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        wait_for(lambda: engine.submitted and engine.live == 0)
        wait_for(lambda: not server.server.server_state.tasks)
        assert httpx.post(f"{server.url}{CHAT}", json={"messages": MESSAGES, "max_tokens": 1}).status_code == 200
        connection.close()


def test_many_streams_at_once_get_what_they_would_get_alone() -> None:
    engine = FakeEngine(lambda request: prompt_text(request)[::-1] + " ö", slots=4)

    async def one(client: httpx.AsyncClient, index: int) -> str:
        body = {"prompt": f"request {index}", "stream": True}
        response = await client.post(TEXT, json=body)
        return "".join(choice["text"] for event in events_of(response.text) for choice in event["choices"])

    async def all_of(url: str) -> list[str]:
        async with httpx.AsyncClient(base_url=url, timeout=30) as client:
            return await asyncio.gather(*(one(client, index) for index in range(64)))

    with listening(engine) as server:
        texts = asyncio.run(all_of(server.url))
    assert texts == [f"request {index}"[::-1] + " ö" for index in range(64)]


def test_two_hundred_cancelled_requests_leave_the_server_as_it_was() -> None:
    engine = FakeEngine("x" * 200, delay=0.002)
    with listening(engine) as server:
        for _ in range(4):
            connections = [raw_request(server.url, CHAT, {"messages": MESSAGES, "stream": True}) for _ in range(50)]
            wait_for(lambda: engine.live >= 50)
            for connection in connections:
                connection.close()
            wait_for(lambda: engine.live == 0)
        health = httpx.get(f"{server.url}/health").json()
        wait_for(lambda: not server.server.server_state.tasks)
    assert health == {"status": "ok", "running": 0, "waiting": 0}
    assert len(engine.submitted) == 200


def test_events_arrive_as_they_are_made() -> None:
    gate = threading.Event()
    engine = FakeEngine("ab", gate=gate)
    with (
        listening(engine) as server,
        httpx.stream("POST", f"{server.url}{CHAT}", json={"messages": MESSAGES, "stream": True}) as response,
    ):
        lines = response.iter_lines()
        assert '"role":"assistant"' in next(lines)  # before the engine has done anything
        assert engine.rounds == 0
        gate.set()
        assert "".join(lines).endswith("[DONE]")
