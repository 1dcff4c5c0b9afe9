"""The recorder notices what is not described: otherwise all other tests would prove nothing about the description."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from serving.api.endpoints import ENDPOINTS
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, TEXT, running
from tests.serving.recorder import Recorder, description_of, events_in

pytestmark = pytest.mark.anyio

JSON = ((b"content-type", b"application/json"), (b"x-request-id", b"1"))
VERSION = b'{"version":"1"}'


async def problems_of(
    path: str,
    body: bytes | list[bytes],
    *,
    method: str = "GET",
    status: int = 200,
    headers: tuple[tuple[bytes, bytes], ...] = JSON,
    content: bytes = b"",
) -> list[str]:
    """What is wrong with a response that an application gives."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        for part in body if isinstance(body, list) else [body]:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    recorder = Recorder(app, ENDPOINTS)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=recorder), base_url="http://localhost") as client:
        await client.request(method, path, content=content)
    assert recorder.checked == 1
    return recorder.problems


async def test_a_response_as_described_is_no_problem() -> None:
    assert await problems_of("/version", VERSION) == []


@pytest.mark.parametrize(
    ("told", "given"),
    [
        ("'version' is a required property", {"body": b"{}"}),
        ("Additional properties are not allowed", {"body": b'{"version":"1","more":1}'}),
        ("1 is not of type 'string'", {"body": b'{"version":1}'}),
        ("not JSON", {"body": b'{"version":"1"'}),
        ("not JSON (NaN", {"body": b'{"version":NaN}'}),
        ("the status is not described", {"status": 418, "body": VERSION}),
        ("content type is 'text/html'", {"headers": ((b"content-type", b"text/html"), JSON[1]), "body": VERSION}),
        ("no header x-request-id", {"headers": JSON[:1], "body": VERSION}),
    ],
)
async def test_what_is_not_described_is_a_problem(told: str, given: dict[str, Any]) -> None:
    (problem,) = await problems_of("/version", **given)
    assert told in problem


async def test_addresses_without_an_operation_have_errors_only() -> None:
    error = json.dumps({"error": {"message": "", "type": "", "param": None, "code": None}}).encode()
    assert await problems_of("/nope", error, status=404) == []
    assert "no such operation" in (await problems_of("/nope", error, status=200))[0]
    assert len(await problems_of("/nope", b'{"detail":"not found"}', status=404)) == 1


EVENT_STREAM = ((b"content-type", b"text/event-stream"), JSON[1])


@pytest.mark.parametrize(
    ("described", "event"),
    [
        (True, '{"id":"a","object":"text_completion","created":1,"model":"m","choices":[]}'),
        (True, '{"error":{"message":"","type":"","param":null,"code":null}}'),
        (False, '{"id":"a"}'),
        (False, '{"id":"a","object":"odd","created":1,"model":"m","choices":[]}'),
    ],
)
async def test_every_event_is_compared(described: bool, event: str) -> None:
    stream = [f"data: {event}\n\n".encode(), b"data: [DONE]\n\n"]
    found = await problems_of(TEXT, stream, method="POST", headers=EVENT_STREAM)
    assert described == (found == []), found


@pytest.mark.parametrize(
    "stream",
    ["data: 1\n\ndata: [DO", "data: [DONE]\n\ndata: 1\n\n", "data: 1\ndata: 2\n\n", "event: a\n\n", "id: 1\n\n"],
)
def test_streams_are_well_formed(stream: str) -> None:
    with pytest.raises(AssertionError):
        events_in(stream.encode(), complete=True)
    assert events_in(b": keep-alive\n\ndata: 1\n\ndata: {", complete=False) == ["1"]


async def test_shapes_that_only_some_requests_get() -> None:
    picked = b'{"content":"a"}'
    assert await problems_of("/completion", picked, method="POST", content=b'{"response_fields":["content"]}') == []
    assert len(await problems_of("/completion", picked, method="POST", content=b'{"prompt":"a"}')) == 1


async def test_a_form_that_was_valid_once_is_not_all_that_is_valid() -> None:
    """Events of one form are compared once; texts that must be certain ones are part of the form."""
    schemas = description_of(ENDPOINTS)
    operation = schemas.operation("GET", "/v1/models")
    assert operation is not None
    good = b'{"object":"list","data":[{"id":"a","object":"model","created":1,"max_model_len":1,"aliases":[]}]}'
    assert await problems_of("/v1/models", good) == []
    assert await problems_of("/v1/models", good.replace(b'"id":"a"', b'"id":"b"')) == []
    assert await problems_of("/v1/models", good.replace(b'"model"', b'"modal"')) != []
    assert await problems_of("/v1/models", good.replace(b'"created":1', b'"created":1.5')) != []


async def test_the_harness_fails_a_test_whose_response_is_not_as_described(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = description_of(ENDPOINTS).operation("POST", CHAT)
    assert operation is not None
    monkeypatch.setitem(operation["responses"], "200", operation["responses"]["400"])  # type: ignore[index]
    with pytest.raises(AssertionError, match="differ from the OpenAPI document"):
        async with running(FakeEngine("x")) as client:
            await client.post(CHAT, json={"messages": MESSAGES})


@pytest.mark.parametrize(
    "message",
    ["x" * 40_000, "Traceback (most recent call last)", "<object at 0x7f3a2b1c9d80>", f"in {__file__}, line 5"],
)
async def test_errors_are_short_and_tell_nothing_of_the_inside(message: str) -> None:
    error = json.dumps({"error": {"message": message, "type": "", "param": None, "code": None}}).encode()
    assert len(await problems_of("/v1/models", error, status=503)) == 1
    # What the client has sent itself is no secret.
    told = await problems_of(CHAT, error, method="POST", status=400, content=message.encode())
    assert len(told) == (len(message) > 1000)
