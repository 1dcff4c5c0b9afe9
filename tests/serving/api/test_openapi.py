"""The OpenAPI document, its page, and the table of fields: all from the schemas, all true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.api.openapi import document, page
from serving.api.requests.compatibility import FIELDS, OBJECTS, markdown
from serving.api.schemas import ChatCompletionRequest, ChatMessage, CompletionRequest, ContentPart, StreamOptions
from serving.app import create_app
from serving.settings.settings import Settings
from tests.serving.fakes import fake_service
from tests.serving.harness import running

pytestmark = pytest.mark.anyio


def test_every_field_of_the_schemas_is_in_the_table_as_honoured_and_no_other() -> None:
    for endpoint, schema in (("chat", ChatCompletionRequest), ("completions", CompletionRequest)):
        honoured = {field.name for field in FIELDS if field.decision == "honoured" and endpoint in field.endpoints}
        assert honoured == set(schema.__struct_fields__)
    names = [(field.name, endpoint) for field in FIELDS for endpoint in field.endpoints]
    assert len(names) == len(set(names))
    objects = {"stream_options": StreamOptions, "messages[]": ChatMessage, "messages[].content[]": ContentPart}
    for where, schema in objects.items():
        honoured = {field.name for field in OBJECTS[where] if field.decision == "honoured"}
        assert honoured == set(schema.__struct_fields__)
    assert OBJECTS.keys() == objects.keys()


def test_the_compatibility_page_is_up_to_date() -> None:
    file = Path(__file__).parents[3] / "docs" / "openai-compatibility.md"
    assert file.read_text("utf-8") == markdown(), (
        "run: python -m serving.api.requests.compatibility > docs/openai-compatibility.md"
    )


def test_every_route_is_in_the_document_and_every_reference_resolves() -> None:
    text = str(document())
    references = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert references <= set(document()["components"]["schemas"])
    app = create_app(Settings(), service=fake_service())
    routes = {re.sub(r"\{(\w+)(:\w+)?\}", "{}", route.path) for route in app.routes} - {"/docs", "/openapi.json"}
    assert {re.sub(r"\{\w+\}", "{}", path) for path in document()["paths"]} == routes


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
