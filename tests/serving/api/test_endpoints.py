"""The OpenAPI document, its page, and the table of fields: all from the schemas, all true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import openai.types.chat.chat_completion_content_part_param
import openai.types.completion_create_params
import pytest

import serving.app
from serving.api.controllers.generation_fields import FIELDS, OBJECTS
from serving.api.description.compatibility import compatibility_page
from serving.api.description.openapi import document as document_of
from serving.api.description.page import page
from serving.api.endpoint import Call, Endpoint, Field
from serving.api.endpoints import ENDPOINTS
from serving.api.schemas import ChatCompletionRequest, ChatMessage, CompletionRequest, ContentPart, StreamOptions
from serving.api.schemas.output_format import JsonSchemaFormat, ResponseFormat, StructuredOutputs
from serving.api.schemas.tools import FunctionDefinition, MessageToolCall, Tool, ToolChoice
from serving.app import create_app
from serving.settings.settings import Settings
from tests.serving.fakes import fake_service
from tests.serving.harness import running

pytestmark = pytest.mark.anyio


def document() -> dict[str, Any]:
    return document_of(ENDPOINTS)


def markdown() -> str:
    return compatibility_page(ENDPOINTS)


def test_every_field_of_the_schemas_is_in_the_table_as_honoured_and_no_other() -> None:
    for endpoint, schema in (("chat", ChatCompletionRequest), ("completions", CompletionRequest)):
        honoured = {field.name for field in FIELDS if field.decision == "honoured" and endpoint in field.endpoints}
        assert honoured == set(schema.__struct_fields__)
    names = [(field.name, endpoint) for field in FIELDS for endpoint in field.endpoints]
    assert len(names) == len(set(names))
    objects = {
        "stream_options": StreamOptions,
        "response_format": ResponseFormat,
        "response_format.json_schema": JsonSchemaFormat,
        "structured_outputs": StructuredOutputs,
        "messages[]": ChatMessage,
        "messages[].content[]": ContentPart,
        "messages[].tool_calls[]": MessageToolCall,
        "tools[]": Tool,
        "tools[].function": FunctionDefinition,
        "tool_choice": ToolChoice,
        "functions[]": FunctionDefinition,
    }
    for where, schema in objects.items():
        honoured = {field.name for field in OBJECTS[where] if field.decision == "honoured"}
        assert honoured == set(schema.__struct_fields__)
    assert OBJECTS.keys() == objects.keys()


@pytest.mark.parametrize(
    ("endpoint", "params"),
    [
        ("chat", openai.types.chat.completion_create_params.CompletionCreateParamsBase),
        ("completions", openai.types.completion_create_params.CompletionCreateParamsBase),
    ],
)
def test_every_field_of_openais_requests_is_in_the_table(endpoint: str, params: type) -> None:
    known = {field.name for field in FIELDS if endpoint in field.endpoints}
    assert set(params.__annotations__) | {"stream"} <= known


def test_every_field_of_openais_messages_is_in_the_table() -> None:
    chat = openai.types.chat
    messages = (
        chat.ChatCompletionDeveloperMessageParam,
        chat.ChatCompletionSystemMessageParam,
        chat.ChatCompletionUserMessageParam,
        chat.ChatCompletionAssistantMessageParam,
        chat.ChatCompletionToolMessageParam,
    )
    parts = (
        chat.ChatCompletionContentPartTextParam,
        chat.ChatCompletionContentPartImageParam,
        chat.ChatCompletionContentPartInputAudioParam,
        chat.ChatCompletionContentPartRefusalParam,
        chat.chat_completion_content_part_param.File,
    )
    for where, types in (
        ("messages[]", messages),
        ("messages[].content[]", parts),
        ("stream_options", (chat.ChatCompletionStreamOptionsParam,)),
    ):
        known = {field.name for field in OBJECTS[where]}
        for params in types:
            assert set(params.__annotations__) <= known, (where, params)


def test_the_compatibility_page_is_up_to_date() -> None:
    file = Path(__file__).parents[3] / "docs" / "openai-compatibility.md"
    assert file.read_text("utf-8") == markdown(), "run: python -m serving.api.endpoints > docs/openai-compatibility.md"


def test_every_route_is_in_the_document_and_every_reference_resolves() -> None:
    text = str(document())
    references = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert references <= set(document()["components"]["schemas"])
    app = create_app(Settings(), service=fake_service())
    routes = {re.sub(r"\{(\w+)(:\w+)?\}", "{}", route.path) for route in app.routes}
    documented = {re.sub(r"\{\w+\}", "{}", path) for path in document()["paths"]}
    assert documented | {path.removeprefix("/v1") for path in documented} == routes


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = page(document())
    assert "<script" not in html
    assert not re.findall(r"(?:src|href)=[\"']?(?:https?:)?//", html)
    assert "ChatCompletionRequest" in html
    assert "max_completion_tokens" in html


async def test_both_are_served() -> None:
    async with running() as client:
        docs, openapi = await client.get("/docs"), await client.get("/openapi.json")
    assert docs.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in docs.headers["content-security-policy"]
    assert openapi.headers["content-type"] == "application/json"
    assert openapi.json() == document()


class Squared(msgspec.Struct):
    """The square of a number."""

    result: int


class SquareRequest(msgspec.Struct):
    number: int


async def square(call: Call[SquareRequest]) -> Squared:
    return Squared(result=call.body.number**2)


SQUARE = Endpoint(
    path="/v1/squares",
    method="POST",
    operation_id="square",
    summary="Square a number",
    request=SquareRequest,
    response=Squared,
    fields=(
        Field("number", "honoured", "any integer"),
        Field("user", "accepted", "a label"),
        Field("precision", "refused", "integers only", neutral=(0,)),
    ),
    example={"number": 3},
    errors=(400, 415),
    link="squares",
    handler=square,
)


@pytest.mark.parametrize(
    ("body", "status", "told"),
    [
        ({"number": 3, "user": "me", "precision": 0}, 200, '{"result":9}'),
        ({"number": 3, "precision": 1}, 400, "precision: not supported by this server (integers only)"),
        ({"number": "3"}, 400, "number: Expected `int`"),
        ({}, 400, "missing required field `number`"),
    ],
)
async def test_one_record_is_a_whole_endpoint(
    monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], status: int, told: str
) -> None:
    endpoints = (*ENDPOINTS, SQUARE)
    monkeypatch.setattr(serving.app, "ENDPOINTS", endpoints)
    async with running() as client:
        response = await client.post("/v1/squares", json=body)
        openapi, index = await client.get("/openapi.json"), await client.get("/")
        misspelt = await client.post("/v1/squares", json={"number": 3, "usr": "me"})
    assert response.status_code == status
    assert told in response.text
    assert misspelt.headers["x-ignored-fields"] == "usr;nearest=user"
    operation = openapi.json()["paths"]["/v1/squares"]["post"]
    assert (operation["operationId"], "415" in operation["responses"]) == ("square", True)
    assert openapi.json()["components"]["schemas"]["Squared"]["required"] == ["result"]
    assert index.json()["links"]["squares"] == "/v1/squares"
    assert "## POST /v1/squares\n" in compatibility_page(endpoints)
    assert "| `precision` | refused | integers only. Also: `0` |" in compatibility_page(endpoints)


def test_records_are_complete_and_no_operation_is_there_twice() -> None:
    operations = [(endpoint.method, endpoint.path) for endpoint in ENDPOINTS]
    assert len(operations) == len(set(operations))
    names = [endpoint.operation_id for endpoint in ENDPOINTS]
    assert len(names) == len(set(names))
    for endpoint in ENDPOINTS:
        if endpoint.request is None:
            continue
        assert msgspec.convert(endpoint.example, endpoint.request)
        honoured = {field.name for field in endpoint.fields or () if field.decision == "honoured"}
        assert honoured == (set() if endpoint.fields is None else set(endpoint.request.__struct_fields__))
