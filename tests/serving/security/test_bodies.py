"""Bodies that cost more than they weigh: levels, counts, sizes; and what errors tell."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import msgspec
import pytest

import serving.app
from serving.api.endpoint import Endpoint
from serving.api.endpoints import ENDPOINTS
from serving.api.errors import InvalidRequestError
from serving.api.json_bounds import MAX_DEPTH, MAX_NAMES
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, TEXT, running
from tests.serving.recorder import LARGEST_ERROR

pytestmark = pytest.mark.anyio

POSTED = [endpoint for endpoint in ENDPOINTS if endpoint.request is not None]
PLACES = {
    "tools": '[{"type":"function","function":{"name":"f","parameters":{"type":"object","properties":X}}}]',
    "response_format": '{"type":"json_schema","json_schema":{"name":"s","schema":X}}',
    "structured_outputs": '{"json":X}',
    "guided_json": "X",
    "json_schema": "X",
    "grammar": '{"type":"json_schema","value":X}',
    "chat_template_kwargs": '{"mood":X}',
    "documents": '[{"text":X}]',
    "logit_bias": "X",
    "metadata": "X",
    "prediction": '{"content":X}',
    "unknown": "X",
    "messages": '[{"role":"user","content":X}]',
    "stop": "X",
}
"""Fields of a chat request, with the place in them of a value."""


def nested(levels: int, kind: str) -> str:
    if kind == "lists":
        return "[" * levels + "]" * levels
    return '{"a":' * levels + "1" + "}" * levels


def body_with(field: str, value: str) -> bytes:
    fields = {"messages": json.dumps(MESSAGES)} | {field: PLACES[field].replace("X", value)}
    return ("{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}").encode()


@pytest.mark.parametrize("kind", ["lists", "objects"])
@pytest.mark.parametrize("field", PLACES)
async def test_json_bombs_levels_are_bounded_wherever_they_are(field: str, kind: str) -> None:
    async with running(FakeEngine("ok")) as client:
        for levels in (MAX_DEPTH - 8, MAX_DEPTH + 1, 900, 5000, 300_000):
            response = await client.post(CHAT, content=body_with(field, nested(levels, kind)))
            assert response.status_code in (200, 400), response.text
            if levels > MAX_DEPTH:
                assert response.status_code == 400
                assert response.json()["error"]["code"] in ("body_too_complex", "invalid_json")


@pytest.mark.parametrize("endpoint", POSTED, ids=lambda endpoint: endpoint.operation_id)
async def test_json_bombs_every_endpoint_has_the_bounds(endpoint: Endpoint[Any]) -> None:
    example = json.dumps(endpoint.example).encode()
    async with running() as client:
        for bomb in (nested(MAX_DEPTH, "lists"), nested(100_000, "objects"), "[" + "[1]," * 70_000 + "1]"):
            response = await client.post(endpoint.path, content=example[:-1] + b',"x":' + bomb.encode() + b"}")
            assert (response.status_code, response.json()["error"]["code"]) == (400, "body_too_complex")


async def test_json_bombs_the_limit_of_levels_is_exact() -> None:
    async with running(FakeEngine("ok")) as client:
        for levels, status in ((MAX_DEPTH - 1, 200), (MAX_DEPTH, 400)):
            body = f'{{"prompt":"[[[","x":{nested(levels, "lists")}}}'.encode()
            assert (await client.post(TEXT, content=body)).status_code == status
        wide = {"prompt": "x", "x": [[[{"a": [1]}]] for _ in range(5000)], "y": "[" * 9000}
        assert (await client.post(TEXT, json=wide)).status_code == 200


@pytest.mark.parametrize("field", PLACES)
async def test_json_bombs_counts_are_bounded_wherever_they_are(field: str) -> None:
    """Nine megabytes of names, of lists, and of values, in each field."""
    names = "{" + ",".join(f'"{index}":1' for index in range(MAX_NAMES + 100)) + "}"
    lists = "[" + ",".join(["[]"] * 70_000) + "]"
    values = "[" + ",".join(["1"] * 1_100_000) + "]"
    async with running() as client:
        for value in (names, lists, values):
            response = await client.post(CHAT, content=body_with(field, value))
            assert (response.status_code, response.json()["error"]["code"]) == (400, "body_too_complex")


LONG = "x" * 2_000_000
BOUNDED: dict[str, Any] = {
    "tools": [{"type": "function", "function": {"name": "f", "description": LONG}}],
    "guided_json": LONG,
    "regex": LONG,
    "grammar": 'root ::= "' + LONG + '"',
    "ebnf": LONG,
    "guided_choice": [LONG],
    "stop": LONG,
    "bad_words": [LONG],
    "dry_sequence_breakers": [LONG],
    "chat_template_kwargs": {"mood": LONG},
    "logit_bias": dict.fromkeys(map(str, range(20_000)), 1),
    "stop_token_ids": [index % 200 for index in range(100_000)],
    "reasoning_effort": LONG,
    "model": LONG,
    "adapter": LONG,
    "samplers": [LONG],
    "tool_choice": LONG,
}


@pytest.mark.parametrize("field", BOUNDED)
async def test_field_sizes_are_bounded_and_errors_do_not_repeat_them(field: str) -> None:
    engine = FakeEngine("ok")
    async with running(engine) as client:
        response = await client.post(CHAT, json={"messages": MESSAGES, field: BOUNDED[field]})
    if field == "stop_token_ids":  # each once
        assert response.status_code in (200, 400)
        return
    assert response.status_code in (400, 404), response.text
    assert len(response.content) < LARGEST_ERROR
    assert engine.submitted == []


ODD = '\x01\u2028"\\😀'


def problems_of(error: dict[str, Any], mark: str) -> int:
    return error["message"].count(mark)


@pytest.mark.parametrize(
    ("body", "mark"),
    [
        ({"logit_bias": {f"wrong{index}": 1 for index in range(5000)}}, "wrong"),
        ({"stop_token_ids": [10**6 + index for index in range(1000)]}, "10000"),
        ({"allowed_token_ids": [10**6 + index for index in range(1000)]}, "10000"),
        ({f"unknown{index}": 1 for index in range(400)}, "unknown"),
        ({"model": ODD * 50_000}, ODD),
        ({"messages": [{"role": ODD * 50_000, "content": "x"}]}, ODD),
        ({"adapters": {f"wrong{index}": 1.0 for index in range(5000)}}, "wrong"),
        ({"messages": [{"role": "user", "content": [{"type": f"wrong{index}"} for index in range(99)]}]}, "wrong"),
    ],
)
async def test_error_bodies_are_small_and_name_ten_problems_at_most(body: dict[str, Any], mark: str) -> None:
    async with running(strict_fields=True) as client:
        response = await client.post(CHAT, json={"messages": MESSAGES} | body)
    assert response.status_code in (400, 404)
    assert len(response.content) <= LARGEST_ERROR
    assert problems_of(response.json()["error"], mark) <= 10


def test_error_bodies_the_longest_message_fits() -> None:
    """Every character takes six bytes of JSON at most."""
    body = InvalidRequestError("\x01" * 10**6, param="\x01" * 10**6).body()
    assert len(msgspec.json.encode(body)) < LARGEST_ERROR


async def test_error_bodies_of_unexpected_failures_tell_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On every endpoint: the log has what happened."""

    async def broken(_call: Any) -> Any:
        raise OSError(13, "Permission denied", "/srv/models/secret/weights.safetensors")

    monkeypatch.setattr(
        serving.app, "ENDPOINTS", tuple(dataclasses.replace(each, handler=broken) for each in ENDPOINTS)
    )
    async with running() as client:
        for endpoint in ENDPOINTS:
            path = re.sub(r"\{\w+:\w+\}", "x", endpoint.path)
            response = await client.request(endpoint.method, path, content=json.dumps(endpoint.example).encode())
            assert response.status_code == 500, path
            assert response.json()["error"]["code"] == "internal_error"
            assert "secret" not in response.text
            assert "Permission" not in response.text
