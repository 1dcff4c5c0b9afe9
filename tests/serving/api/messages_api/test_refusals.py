"""What /v1/messages refuses, by name and in Anthropic's shape."""

from __future__ import annotations

from typing import Any

import pytest

from serving.api.messages_api.create import COUNT_TOKENS, MESSAGES
from serving.api.messages_api.fields import MESSAGES_OBJECTS
from serving.api.messages_api.request import (
    ContentBlockParam,
    MessageParam,
    OutputConfigParam,
    OutputFormatParam,
    TextBlockParam,
    ThinkingParam,
    ToolChoiceParam,
    ToolParam,
)
from serving.engine.messages import EngineState
from tests.serving.api.controllers.test_tools import format_of
from tests.serving.api.messages_api.test_messages import PATH, SCHEMA, TOOLS, ask, error_of
from tests.serving.fakes import FakeChat, FakeEngine, fake_service
from tests.serving.harness import MESSAGES as HI
from tests.serving.harness import running

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"max_tokens": None}, "max_tokens: Expected `int`"),
        ({"max_tokens": 0}, "max_tokens is 0; expected at least 1"),
        ({"temperature": 3}, "temperature is 3"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type: 'web_search_20250305'"),
        ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type: 'bash_20250124'"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema: expected a JSON schema"),
        ({"tools": [{"name": "a b", "input_schema": SCHEMA}]}, "tools[0].name: 'a b' is not valid"),
        ({"tools": [{"name": "a", "input_schema": {"type": "array"}}]}, "tools[0].input_schema: expected"),
        ({"tools": [{**TOOLS[0], "defer_loading": True}]}, "tools[0].defer_loading: not supported"),
        ({"tools": TOOLS, "tool_choice": {"type": "required"}}, "tool_choice.type: 'required' is not known"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool"}}, "tool_choice.name: expected"),
        ({"tools": TOOLS, "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name: there is no tool"),
        ({"stop_sequences": ["x" * 20000]}, "stop_sequences"),
        ({"mcp_servers": [{"type": "url"}]}, "mcp_servers: not supported"),
        ({"container": "c"}, "container: not supported"),
        ({"system": [{"type": "image"}]}, "system[0].type: 'image' is not supported"),
        ({"messages": [{"role": "user", "content": "raise"}]}, "messages: conversation roles must alternate"),
    ],
)
async def test_it_is_refused_by_name(body: dict[str, Any], told: str) -> None:
    error = error_of(await ask(output=format_of("hermes"), **body))
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(told)


async def test_what_changes_nothing_is_accepted() -> None:
    cached = {"cache_control": {"type": "ephemeral"}}
    response = await ask(
        output=format_of("hermes"),
        system=[{"type": "text", "text": "a", **cached}],
        messages=[{"role": "user", "content": [{"type": "text", "text": "hi", "citations": None, **cached}]}],
        tools=[{**TOOLS[0], **cached, "eager_input_streaming": True, "allowed_callers": ["direct"]}],
        metadata={"user_id": "me"},
        service_tier="auto",
        context_management={"edits": []},
        mcp_servers=[],
        **cached,
    )
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers


async def test_unknown_fields_are_reported() -> None:
    response = await ask(stop_sequence=["x"], messages=[{"role": "user", "content": "hi", "contents": 1}])
    assert response.headers["x-ignored-fields"] == (
        "stop_sequence;nearest=stop_sequences, messages[0].contents;nearest=content"
    )


async def test_every_error_has_the_shape() -> None:
    body = {"messages": HI, "max_tokens": 5}
    async with running(api_keys=("key",), max_body_bytes=1024) as client:
        assert error_of(await client.post(PATH, json=body), 401)["type"] == "authentication_error"
        for name in ("x-api-key", "authorization"):
            headers = {name: "key" if name == "x-api-key" else "Bearer key", "anthropic-version": "2023-06-01"}
            assert (await client.post(PATH, json=body, headers=headers)).status_code == 200
            assert (await client.post(PATH[3:], json=body, headers=headers)).status_code == 200
        headers = {"x-api-key": "key"}
        bad_host = {**headers, "host": "other.example"}
        text = {**headers, "content-type": "text/plain"}
        for path in (PATH, f"/{PATH}", PATH[3:], f"{PATH}/"):
            url = f"http://localhost:1234{path}"
            missing = await client.post(url, json={**body, "model": "other"}, headers=headers)
            assert error_of(missing, 404)["type"] == "not_found_error"
            assert error_of(await client.get(url, headers=headers), 405)["type"] == "invalid_request_error"
            assert error_of(await client.post(url, json=body, headers=bad_host), 403)["type"] == "permission_error"
        assert error_of(await client.post(PATH, content="{", headers=headers))["type"] == "invalid_request_error"
        assert error_of(await client.post(PATH, content="{}", headers=text), 415)["type"] == "invalid_request_error"
        large = await client.post(PATH, json={**body, "system": "x" * 2000}, headers=headers)
        assert error_of(large, 413)["type"] == "request_too_large"
        other = await client.post("/v1/chat/completions", json={}, headers=headers)
        assert other.json()["error"].keys() == {"message", "type", "param", "code"}
    async with running(FakeEngine(state=EngineState.LOADING)) as client:
        loading = await client.post(PATH, json=body)
        assert error_of(loading, 503)["type"] == "overloaded_error"
        assert loading.headers["retry-after"]


async def test_a_prompt_that_is_too_long_is_refused_in_the_words_that_clients_look_for() -> None:
    error = error_of(await ask(messages=[{"role": "user", "content": "x" * 400}]))
    assert error["message"].startswith("prompt is too long: 407 tokens > 256 maximum")


def test_the_tables_are_those_of_the_schemas() -> None:
    schemas = {
        "messages[]": MessageParam,
        "messages[].content[]": ContentBlockParam,
        "messages[].content[].content[]": TextBlockParam,
        "system[]": TextBlockParam,
        "tools[]": ToolParam,
        "tool_choice": ToolChoiceParam,
        "thinking": ThinkingParam,
        "output_config": OutputConfigParam,
        "output_config.format": OutputFormatParam,
        "output_format": OutputFormatParam,
    }
    assert MESSAGES_OBJECTS.keys() == schemas.keys()
    for where, schema in schemas.items():
        honoured = {field.name for field in MESSAGES_OBJECTS[where] if field.decision == "honoured"}
        assert honoured == set(schema.__struct_fields__), where


def test_every_field_of_anthropics_requests_is_in_the_table() -> None:
    anthropic = pytest.importorskip("anthropic")
    create = anthropic.types.message_create_params.MessageCreateParamsBase
    assert set(create.__annotations__) <= MESSAGES.known[""]
    assert set(anthropic.types.MessageCountTokensParams.__annotations__) <= COUNT_TOKENS.known[""]
    assert set(anthropic.types.ToolParam.__annotations__) <= MESSAGES.known["tools[]"]
    for block in ("TextBlockParam", "ToolUseBlockParam", "ToolResultBlockParam", "ThinkingBlockParam"):
        assert set(getattr(anthropic.types, block).__annotations__) <= MESSAGES.known["messages[].content[]"]


async def test_models_without_a_template_refuse_messages() -> None:
    async with running(service=fake_service(chat=False)) as client:
        error = error_of(await client.post(PATH, json={"messages": HI, "max_tokens": 5}))
    assert "no chat template" in error["message"]
    assert (await ask(output=FakeChat())).status_code == 200
