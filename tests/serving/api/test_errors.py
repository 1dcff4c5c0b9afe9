"""Every status has OpenAI's error object and a request id, and tells nothing of the machine."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from mistral_jax.chat.encoding import PromptPieces
from serving.api.errors import MAX_MESSAGE, InvalidRequestError, without_paths
from serving.engine.messages import EngineState
from tests.serving.fakes import FakeChat, FakeEngine, fake_service
from tests.serving.harness import CHAT, MESSAGES, TEXT, running

pytestmark = pytest.mark.anyio


def error_of(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object, after checking what holds for every one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-request-id"]
    assert len(response.content) < 8192
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)
    return error


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"messages": NaN}',
        b'{"messages": []} x',
        b'{"model": "\xff"}',
        b'{"messages": "\\ud800"}',
        b'{"messages": ' + b'{"a":' * 50_000,
    ],
)
async def test_malformed_json(body: bytes) -> None:
    async with running() as client:
        error = error_of(await client.post(CHAT, content=body), 400)
    assert error["code"] == "invalid_json"
    assert "not valid JSON" in error["message"]


async def test_json_that_is_nested_too_deeply() -> None:
    body = b'{"x": ' + b"[" * 30_000 + b"]" * 30_000 + b"}"
    async with running() as client:
        error = error_of(await client.post(CHAT, content=body), 400)
    assert error["code"] == "body_too_complex"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, "[]", None),
        (CHAT, "5", None),
        (CHAT, "{}", None),
        (CHAT, '{"messages": [{"content": "x"}]}', "messages[0]"),
        (CHAT, '{"messages": [], "temperature": "hot"}', "temperature"),
        (CHAT, '{"messages": [], "stream_options": {"include_usage": 1}}', "stream_options.include_usage"),
        (CHAT, '{"messages": [], "seed": 1.5}', "seed"),
        (TEXT, '{"prompt": [1, "a", {}]}', "prompt[2]"),
        (TEXT, '{"prompt": "a", "logprobs": true}', "logprobs"),
    ],
)
async def test_wrong_types_name_the_field(path: str, body: str, param: str | None) -> None:
    async with running() as client:
        error = error_of(await client.post(path, content=body), 400)
    assert (error["code"], error["param"]) == ("invalid_type", param)
    assert "xpected" in error["message"] or "required" in error["message"]


async def test_unknown_addresses_and_methods() -> None:
    async with running() as client:
        for path in ("/nope", "/v1", "/v1/chat", "/v2/chat/completions", "/v1/models/other/model"):
            assert error_of(await client.get(path), 404)["type"] == "invalid_request_error"
        response = await client.get(CHAT)
        assert error_of(response, 405)["code"] == "method_not_allowed"
        assert set(response.headers["allow"].split(", ")) == {"OPTIONS", "POST"}
        assert error_of(await client.delete("/v1/models"), 405)


async def test_a_body_that_is_too_large() -> None:
    async def chunks():
        for _ in range(8):
            yield b" " * 500

    async with running(max_body_bytes=2000) as client:
        error = error_of(await client.post(CHAT, content=b" " * 2001), 413)
        assert error["code"] == "body_too_large"
        error_of(await client.post(CHAT, content=chunks()), 413)
        error_of(await client.post(CHAT, content=json.dumps({"messages": []})), 400)


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("application/json", 200),
        ("application/json; charset=utf-8", 200),
        ("Application/JSON", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/x-www-form-urlencoded", 415),
    ],
)
async def test_content_types(content_type: str, status: int) -> None:
    body = json.dumps({"messages": MESSAGES})
    async with running() as client:
        response = await client.post(CHAT, content=body, headers={"content-type": content_type})
        assert response.status_code == status
        if status == 415:
            error_of(response, 415)


async def test_a_body_without_a_type_is_refused_on_every_path_that_takes_one() -> None:
    """A web page can make a browser send such a body to any server, adapters' loading included."""
    engine = FakeEngine()
    async with running(engine) as client:
        for path in (CHAT, TEXT, "/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            for headers in ({}, {"Content-Type": ""}, {"Content-Type": "; charset=utf-8"}):
                request = client.build_request("POST", path, content=json.dumps({"messages": MESSAGES, "prompt": "x"}))
                del request.headers["content-type"]
                request.headers.update(headers)
                error = error_of(await client.send(request), 415)
                assert error["code"] == "unsupported_media_type"
                assert "Content-Type: application/json" in error["message"]
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [{"type": "function", "function": {"name": "f"}}]),  # of a model whose format has none
        ("functions", [{"name": "f"}]),
        ("modalities", ["text", "audio"]),
        ("audio", {"voice": "x"}),
        ("web_search_options", {}),
        ("reasoning_effort", "high"),
        ("use_beam_search", True),
        ("mirostat", 2),
        ("chat_template", "{{ x }}"),
    ],
)
async def test_what_is_known_and_not_implemented_is_refused_by_name(field: str, value: Any) -> None:
    engine = FakeEngine()
    async with running(engine) as client:
        error = error_of(await client.post(CHAT, json={"messages": MESSAGES, field: value}), 400)
    assert (error["param"], error["code"]) == (field, "unsupported_parameter")
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "assistant", "content": "x", "audio": {"id": "a"}}, "messages[1].audio"),
        ({"role": "assistant", "refusal": "no"}, "messages[1].refusal"),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "image_url": {"url": "x"}}]},
            "messages[1].content[0].image_url",
        ),
    ],
)
async def test_fields_of_objects_are_refused_by_their_paths(message: dict[str, Any], param: str) -> None:
    engine = FakeEngine()
    async with running(engine) as client:
        error = error_of(await client.post(CHAT, json={"messages": [*MESSAGES, message]}), 400)
        assert (error["param"], error["code"]) == (param, "unsupported_parameter")
        assert engine.submitted == []
        nothing = {"role": "assistant", "content": "x", "audio": None, "refusal": None}
        assert (await client.post(CHAT, json={"messages": [*MESSAGES, nothing]})).status_code == 200


async def test_values_that_ask_for_nothing_are_let_through() -> None:
    body = {
        "messages": MESSAGES,
        "tools": [{"type": "function", "function": {"name": "f"}}],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "modalities": ["text"],
        "parallel_tool_calls": False,
        "min_tokens": 0,
        "service_tier": "auto",
    }
    async with running() as client:
        assert (await client.post(CHAT, json=body)).status_code == 200


async def test_a_full_queue_is_a_503_that_says_when_to_come_back() -> None:
    engine = FakeEngine("x", slots=1, queue_limit=1, delay=0.01)
    async with running(engine) as client:
        response = await client.post(TEXT, json={"prompt": ["a", "b", "c"]})
        error = error_of(response, 503)
        assert (error["code"], response.headers["retry-after"]) == ("queue_full", "3")
        assert engine.live == 0
        assert (await client.post(TEXT, json={"prompt": ["a", "b"]})).status_code == 200


async def test_unexpected_exceptions_are_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(FakeChat):
        def encode_pieces(self, messages: Any, **kwargs: Any) -> PromptPieces:
            raise KeyError("/secret/path")

    service = fake_service()
    object.__setattr__(service, "chat", Broken())
    async with running(service=service) as client:
        response = await client.post(CHAT, json={"messages": MESSAGES}, headers={"x-request-id": "find-me"})
    error = error_of(response, 500)
    assert error["code"] == "internal_error"
    assert "secret" not in response.text
    assert "find-me" in caplog.text  # the log has the details, under the id
    assert "KeyError" in caplog.text


@pytest.mark.parametrize(
    "state", [EngineState.LOADING, EngineState.WARMING_UP, EngineState.DRAINING, EngineState.FAILED]
)
async def test_requests_are_refused_while_the_engine_is_not_ready(state: EngineState) -> None:
    engine = FakeEngine(state=state)
    engine.detail = "reading /home/me/models/weights.safetensors"
    async with running(engine) as client:
        for path in (CHAT, TEXT):
            response = await client.post(path, json={"messages": MESSAGES, "prompt": "x"})
            error = error_of(response, 503)
            assert error["code"] == state.name.lower()
            assert "/home" not in response.text
            assert ("retry-after" in response.headers) == (state is not EngineState.FAILED)
        health = await client.get("/health")
        assert health.status_code == 503
        assert health.json()["status"] == str(state)
        assert health.json()["error"]["code"] == state.name.lower()
        assert "/home" not in health.text


async def test_request_ids_are_echoed_or_minted_on_every_response() -> None:
    async with running() as client:
        for path in ("/health", "/nope", "/v1/models"):
            assert (await client.get(path, headers={"X-Request-Id": "my-id.1"})).headers["x-request-id"] == "my-id.1"
        for bad in ("", "two words", "x" * 129, "ä"):
            minted = (await client.get("/health", headers={"X-Request-Id": bad.encode()})).headers["x-request-id"]
            assert len(minted) == 32
        ids = {(await client.get("/health")).headers["x-request-id"] for _ in range(3)}
        assert len(ids) == 3


async def test_long_input_is_not_echoed_at_length() -> None:
    async with running() as client:
        for body in (
            {"messages": MESSAGES, "model": "x" * 100_000},
            {"messages": [{"role": "y" * 100_000, "content": "x"}]},
            {"messages": MESSAGES, "logit_bias": {"z" * 1000 + str(i): 1 for i in range(1000)}},
        ):
            response = await client.post(CHAT, json=body)
            assert response.status_code in (400, 404)
            error_of(response, response.status_code)
    assert len(InvalidRequestError("x" * 10_000).body().error.message) <= MAX_MESSAGE + 4


def test_paths_are_shortened_and_addresses_are_not() -> None:
    assert without_paths("no /home/me/models/a.bin here") == "no a.bin here"
    assert without_paths(r"no C:\Users\me\a.bin here") == "no a.bin here"
    assert without_paths("use /v1 or http://host/v1/models or a/b") == "use /v1 or http://host/v1/models or a/b"
