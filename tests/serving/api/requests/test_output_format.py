"""The fields that ask for a format, through the API, on an engine that is a fake: which grammar arrives there, and what
is refused."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest

from serving.engine.messages import Request, StartConstraint
from tests.serving.fakes import CARD, FakeEngine, FakeTokenizer
from tests.serving.harness import CHAT, MESSAGES, TEXT, running

pytestmark = pytest.mark.anyio

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
GBNF = 'root ::= "x" [0-9]+'
LARK = 'start: "x" /[0-9]+/'


type Ask = Callable[[dict[str, Any]], Awaitable[tuple[httpx.Response, list[Request]]]]


@contextlib.asynccontextmanager
async def asking(path: str = CHAT) -> AsyncIterator[Ask]:
    """Posts bodies to one server; gives each response, and what its engine got."""
    engine = FakeEngine("ok")
    about = {"messages": MESSAGES} if path == CHAT else {"prompt": "hi"}
    async with running(engine) as client:

        async def ask(body: dict[str, Any]) -> tuple[httpx.Response, list[Request]]:
            before = len(engine.submitted)
            response = await client.post(path, json={**about, **body})
            return response, engine.submitted[before:]

        yield ask


def takes(constraint: StartConstraint, text: str) -> bool:
    """Whether a text may be the whole completion."""
    started, mask = constraint.start(at_start=True), np.zeros(-(-CARD.vocab_size // 32), np.int32)
    for token in [*FakeTokenizer().encode(text), *list(CARD.eos_ids)[:1]]:
        started.fill(mask)
        if not mask[token // 32] >> (token % 32) & 1:
            return False
        started.push(token)
    return True


ASKED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"response_format": {"type": "json_object"}}, '{"b": [1]}', "[1]"),
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, '{"a": 1}', '{"b": 1}'),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}}, '{"a": 1}', "{}"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA, "strict": True}}},
        '{"a": 1}',
        "{}",
    ),
    ({"structured_outputs": {"json": SCHEMA}}, '{"a": 1}', "{}"),
    ({"structured_outputs": {"json": '{"const": 3}'}}, "3", "4"),
    ({"structured_outputs": {"regex": "[ab]+"}}, "aba", "c"),
    ({"structured_outputs": {"choice": ["yes", "no"]}}, "no", "maybe"),
    ({"structured_outputs": {"grammar": GBNF}}, "x12", "x"),
    ({"structured_outputs": {"grammar": LARK}}, "x12", "x"),
    ({"structured_outputs": {"json_object": True}}, "{}", "1"),
    ({"guided_json": SCHEMA}, '{"a": -7}', '{"a": 1.5}'),
    ({"guided_regex": "\\d{2}"}, "42", "4"),
    ({"guided_choice": ["yes", "no"]}, "yes", "ye"),
    ({"guided_grammar": GBNF}, "x1", "y"),
    ({"json_schema": SCHEMA}, '{"a": 1}', "{}"),
    ({"regex": "a|b"}, "b", "ab"),
    ({"ebnf": GBNF}, "x1", "1"),
    ({"grammar": GBNF}, "x1", "1"),
    ({"grammar": LARK}, "x1", "1"),
    ({"grammar": {"type": "lark", "value": LARK}}, "x1", "1"),
    ({"grammar": {"type": "gbnf", "value": GBNF}}, "x1", "1"),
    ({"grammar": {"type": "regex", "value": "a+"}}, "aa", "b"),
    ({"grammar": {"type": "json_schema", "value": {"const": 3}}}, "3", "4"),
    ({"response_format": {"type": "text"}, "regex": "a"}, "a", "b"),
)


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_the_format_that_is_asked_for_arrives(path: str) -> None:
    async with asking(path) as ask:
        for body, yes, no in ASKED:
            response, requests = await ask(body)
            assert response.status_code == 200, (body, response.text)
            (request,) = requests
            assert request.constraint is not None, body
            assert takes(request.constraint, yes), body
            assert not takes(request.constraint, no), body


async def test_without_a_format_completions_are_free() -> None:
    async with asking() as ask:
        for body in (
            {},
            {"response_format": None, "regex": None, "grammar": None},
            {"response_format": {"type": "text"}},
            {"grammar": ""},
            {"structured_outputs": {}},
            {"structured_outputs": {"json_object": False}},
        ):
            response, (request,) = await ask(body)
            assert response.status_code == 200, response.text
            assert request.constraint is None


async def test_all_choices_share_one_compiled_grammar() -> None:
    async with asking() as ask:
        _, requests = await ask({"regex": "a+", "n": 2})
    assert len(requests) == 2
    assert requests[0].constraint is requests[1].constraint is not None


REFUSED: tuple[tuple[dict[str, Any], str, str], ...] = (
    ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex", "both ask for a format"),
    ({"guided_json": SCHEMA, "json_schema": SCHEMA}, "json_schema", "both ask for a format"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice", "both ask for a format"),
    ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag", "not supported"),
    ({"response_format": {"type": "xml"}}, "response_format.type", "'xml' is not known"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "a name and a schema"),
    ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema", "a schema"),
    ({"guided_json": 3}, "guided_json", "expected a JSON schema"),
    ({"json_schema": {"not": {}}}, "json_schema", "`not` at $ cannot be held"),
    ({"json_schema": {"properties": {"a": {"format": "regex"}}}}, "json_schema", "`format` at $.properties.a"),
    ({"json_schema": "{"}, "json_schema", "is no JSON"),
    ({"json_schema": {"$ref": "#"}}, "json_schema", "no finite value"),
    ({"json_schema": False}, "json_schema", "No value matches"),
    ({"regex": "(?=a)"}, "regex", "a lookahead"),
    ({"regex": "(a{1000000})"}, "regex", "more than 10,000 repetitions"),
    ({"guided_choice": []}, "guided_choice", "The list of choices is empty"),
    ({"ebnf": LARK}, "ebnf", "`::=` was expected"),
    ({"grammar": "root ::= <[3]>"}, "grammar", "special tokens are not for requests"),
    ({"grammar": "start: <|im_end|>"}, "grammar", "a special token"),
    ({"grammar": 'start: %json {"x-guidance": {}}'}, "grammar", "not for requests"),
    ({"grammar": "hello"}, "grammar", "cannot be compiled"),
    ({"grammar": {"type": "peg", "value": ""}}, "grammar.type", "'peg' is not known"),
    ({"grammar": {"type": "lark", "value": {}}}, "grammar.value", "expected a text"),
    ({"regex": "a", "ignore_eos": True}, "ignore_eos", "not together with regex"),
)
"""Bodies, the field that the error names, and what it says."""


async def test_what_cannot_be_held_is_refused_with_its_field() -> None:
    async with asking() as ask:
        for body, param, told in REFUSED:
            response, requests = await ask(body)
            error = response.json()["error"]
            assert response.status_code == 400, (body, response.text)
            assert error["type"] == "invalid_request_error"
            assert error["param"] == param or error["param"].startswith(param), body
            assert told in error["message"], body
            assert len(error["message"]) < 600
            assert requests == []


async def test_a_value_of_a_wrong_type_is_refused() -> None:
    async with asking() as ask:
        for field in ("guided_regex", "regex", "ebnf", "guided_choice"):
            response, _ = await ask({field: {"a": 1}})
            assert response.status_code == 400
            assert response.json()["error"]["param"] == field
