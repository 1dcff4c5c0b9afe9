"""What /v1/responses refuses, by name; and that its table has every field of OpenAI's."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from openai.types.responses import (
    FunctionToolParam,
    ResponseFormatTextJSONSchemaConfigParam,
    ResponseTextConfigParam,
    input_token_count_params,
    response_create_params,
)
from openai.types.shared_params import Reasoning

from serving.api.endpoint import Endpoint
from serving.api.responses_api.create import INPUT_TOKENS, RESPONSES
from serving.api.responses_api.fields import RESPONSE_OBJECTS
from serving.api.responses_api.request import (
    InputItem,
    InputPart,
    ReasoningOptions,
    ResponseTool,
    ResponseToolChoice,
    TextFormat,
    TextOptions,
)
from serving.api.schemas import ErrorResponse
from tests.serving.api.controllers.test_tools import format_of
from tests.serving.api.responses_api.test_responses import PATH, TOOLS
from tests.serving.fakes import FakeChat, FakeEngine, fake_service
from tests.serving.harness import running

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("body", "param", "told"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send the earlier items in `input`"),
        ({"conversation": "conv_1"}, "conversation", "send the earlier items in `input`"),
        ({"conversation": {"id": "conv_1"}}, "conversation", "nothing is stored"),
        ({"background": True}, "background", "use stream"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "nothing is stored"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "'web_search'"),
        ({"tools": [*TOOLS, {"type": "file_search", "vector_store_ids": []}]}, "tools[2].type", "'file_search'"),
        ({"tools": [{"type": "computer_use_preview"}]}, "tools[0].type", "'computer_use_preview'"),
        ({"tools": [{"type": "custom", "name": "c"}]}, "tools[0].type", "'custom'"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "expected the name"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "tools[0].name: 'a b' is not valid"),
        (
            {"tools": [{"type": "function", "name": "a", "parameters": {"type": "array"}}]},
            "tools[0].parameters",
            "tools[0].parameters: expected",
        ),
        ({"tools": TOOLS, "tool_choice": "sometimes"}, "tool_choice", "'sometimes'"),
        ({"tools": TOOLS, "tool_choice": {"type": "web_search_preview"}}, "tool_choice.type", "web_search_preview"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.name", "expected the name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name", "no tool"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "any", "tools": [TOOLS[0]]}},
            "tool_choice.mode",
            "expected `auto` or `required`",
        ),
        (
            {"tools": TOOLS, "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "mcp"}]}},
            "tool_choice.tools[0]",
            "expected a function by its name",
        ),
        ({"include": ["message.everything"]}, "include[0]", "'message.everything' is not known"),
        ({"text": {"format": {"type": "grammar"}}}, "text.format.type", "'grammar' is not known"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format", "expected"),
        ({"reasoning": {"effort": "low"}}, "reasoning.effort", "no such setting"),
        ({"reasoning": {"effort": "a lot"}}, "reasoning.effort", "'a lot'"),
        ({"truncation": "some"}, "truncation", "auto or disabled"),
        ({"max_output_tokens": 0}, "max_output_tokens", "expected at least 1"),
        ({"top_logprobs": 21}, "top_logprobs", "20"),
        ({"temperature": 3}, "temperature", "2"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16 pairs"),
        ({"metadata": {"a": "x" * 513}}, "metadata", "512"),
        ({"prompt_cache_options": {"prewarm": True}}, "prompt_cache_options", "prewarm"),
        ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
        ({"response_format": {"type": "json_object"}}, "response_format", "text.format"),
        ({"n": 2}, "n", "one output"),
    ],
)
async def test_it_is_refused_by_name(body: dict[str, Any], param: str, told: str) -> None:
    engine = FakeEngine()
    async with running(service=fake_service(engine, chat=FakeChat(format_of("hermes")))) as client:
        response = await client.post(PATH, json={"input": "hi", **body})
    assert response.status_code == 400, response.text
    error = msgspec.json.decode(response.content, type=ErrorResponse).error
    assert error.param == param
    assert told in error.message
    assert engine.submitted == []


@pytest.mark.parametrize(
    "body",
    [
        {"store": True},
        {"background": False, "previous_response_id": None, "tools": [], "include": [], "n": 1},
        {"include": ["reasoning.encrypted_content", "web_search_call.action.sources"]},
        {"reasoning": {"effort": "none", "summary": "auto", "generate_summary": "auto", "context": "auto"}},
        {"stream_options": {"include_obfuscation": False}, "service_tier": "auto", "max_tool_calls": 1},
        {"prompt_cache_options": {"mode": "implicit"}, "text": {"verbosity": "high"}},
    ],
)
async def test_what_changes_nothing_is_accepted(body: dict[str, Any]) -> None:
    async with running() as client:
        response = await client.post(PATH, json={"input": "hi", **body})
    assert response.status_code == 200, response.text
    assert "x-ignored-fields" not in response.headers


async def test_unknown_fields_are_reported() -> None:
    body = {"input": [{"role": "user", "content": "hi", "nmae": "x"}], "instuctions": "x", "text": {"formt": 1}}
    async with running() as client:
        response = await client.post(PATH, json=body)
    ignored = response.headers["x-ignored-fields"]
    assert "instuctions;nearest=instructions" in ignored
    assert "input[0].nmae;nearest=name" in ignored
    assert "text.formt;nearest=format" in ignored
    async with running(strict_fields=True) as client:
        assert (await client.post(PATH, json=body)).json()["error"]["code"] == "unknown_field"


async def test_nothing_is_stored() -> None:
    async with running() as client:
        for method, path in (
            ("GET", f"{PATH}/resp_1"),
            ("DELETE", f"{PATH}/resp_1"),
            ("GET", f"{PATH}/resp_1/input_items"),
            ("POST", f"{PATH}/resp_1/cancel"),
        ):
            response = await client.request(method, path)
            error = response.json()["error"]
            assert (response.status_code, error["code"]) == (404, "response_not_found"), path
            assert "this server stores none" in error["message"]


@pytest.mark.parametrize(
    ("endpoint", "params"),
    [
        (RESPONSES, response_create_params.ResponseCreateParamsBase),
        (INPUT_TOKENS, input_token_count_params.InputTokenCountParams),
    ],
)
def test_every_field_of_openais_requests_is_in_the_table(endpoint: Endpoint[Any], params: type) -> None:
    assert set(params.__annotations__) <= endpoint.known[""]


def test_every_field_of_openais_objects_is_in_the_table_or_its_value_is_refused() -> None:
    known = {where: {field.name for field in fields} for where, fields in RESPONSE_OBJECTS.items()}
    assert set(ResponseTextConfigParam.__annotations__) <= known["text"]
    assert set(ResponseFormatTextJSONSchemaConfigParam.__annotations__) <= known["text.format"]
    assert set(FunctionToolParam.__annotations__) <= known["tools[]"]
    assert set(Reasoning.__annotations__) <= known["reasoning"]


def test_the_tables_are_those_of_the_schemas() -> None:
    schemas = {
        "input[]": InputItem,
        "input[].content[]": InputPart,
        "input[].output[]": InputPart,
        "tools[]": ResponseTool,
        "tool_choice": ResponseToolChoice,
        "text": TextOptions,
        "text.format": TextFormat,
        "reasoning": ReasoningOptions,
    }
    assert RESPONSE_OBJECTS.keys() == schemas.keys()
    for where, schema in schemas.items():
        honoured = {field.name for field in RESPONSE_OBJECTS[where] if field.decision == "honoured"}
        assert honoured == set(schema.__struct_fields__), where
