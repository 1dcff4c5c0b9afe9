"""Which grammar a request asks for, by which field."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mistral_jax.grammar.grammar import Grammar
from serving.api.controllers.completions import COMPLETIONS
from serving.api.errors import InvalidRequestError
from serving.api.requests.output_format import RequestedFormat, output_format
from serving.api.requests.request_body import decode

SCHEMA = {"type": "object", "properties": {"ä": {"type": "integer"}}}
TEXT = '{"type":"object","properties":{"ä":{"type":"integer"}}}'
LARK, GBNF = "start: /a/", 'root ::= "a"'


def asked(**fields: Any) -> RequestedFormat | None:
    body, unknown = decode(json.dumps({"prompt": "x", **fields}).encode(), COMPLETIONS)
    assert not unknown
    return output_format(body)


@pytest.mark.parametrize(
    ("fields", "param", "grammar"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format", Grammar.json_object()),
        (
            {"response_format": {"type": "json_object", "schema": SCHEMA}},
            "response_format.schema",
            Grammar.json_schema(TEXT),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            "response_format.json_schema.schema",
            Grammar.json_schema(TEXT),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}}},
            "response_format.json_schema.schema",
            Grammar.json_schema("{}", strict=True),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json", Grammar.json_schema(TEXT)),
        ({"structured_outputs": {"json": TEXT}}, "structured_outputs.json", Grammar.json_schema(TEXT)),
        ({"structured_outputs": {"regex": "a+"}}, "structured_outputs.regex", Grammar.regex("a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs.choice", Grammar.choice(["a", "b"])),
        ({"structured_outputs": {"grammar": LARK}}, "structured_outputs.grammar", Grammar.lark(LARK)),
        ({"structured_outputs": {"json_object": True}}, "structured_outputs.json_object", Grammar.json_object()),
        ({"guided_json": SCHEMA}, "guided_json", Grammar.json_schema(TEXT)),
        ({"guided_json": True}, "guided_json", Grammar.json_schema("true")),
        ({"guided_regex": "a+"}, "guided_regex", Grammar.regex("a+")),
        ({"guided_choice": ["a"]}, "guided_choice", Grammar.choice(["a"])),
        ({"guided_grammar": GBNF}, "guided_grammar", Grammar.gbnf(GBNF)),
        ({"json_schema": SCHEMA}, "json_schema", Grammar.json_schema(TEXT)),
        ({"regex": "a+"}, "regex", Grammar.regex("a+")),
        ({"ebnf": GBNF}, "ebnf", Grammar.gbnf(GBNF)),
        ({"grammar": GBNF}, "grammar", Grammar.gbnf(GBNF)),
        ({"grammar": LARK}, "grammar", Grammar.lark(LARK)),
        ({"grammar": {"type": "regex", "value": "a"}}, "grammar", Grammar.regex("a")),
        ({"grammar": {"type": "json_schema", "value": SCHEMA}}, "grammar", Grammar.json_schema(TEXT)),
    ],
)
def test_each_field_asks_for_its_grammar(fields: dict[str, Any], param: str, grammar: Grammar) -> None:
    assert asked(**fields) == RequestedFormat(grammar, param)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None, "grammar": None, "guided_json": None},
        {"response_format": {"type": "text"}},
        {"grammar": ""},
        {"structured_outputs": {"json_object": False}},
    ],
)
def test_text_needs_no_grammar(fields: dict[str, Any]) -> None:
    assert asked(**fields) is None


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": {"type": "xml"}}, "response_format.type", "expected text, json_object or json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "a name and a schema"),
        ({"guided_json": 5}, "guided_json", "expected a JSON schema"),
        ({"grammar": {"type": "peg", "value": "x"}}, "grammar.type", "expected lark, gbnf, regex or json_schema"),
        ({"grammar": {"type": "lark", "value": {}}}, "grammar.value", "expected a text"),
        ({"regex": "a", "ebnf": GBNF}, "ebnf", "regex and ebnf: both ask for a format"),
        (
            {"structured_outputs": {"regex": "a", "choice": ["a"]}},
            "structured_outputs.choice",
            "structured_outputs.regex and structured_outputs.choice: both ask",
        ),
    ],
)
def test_what_is_no_format_is_refused_by_name(fields: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message) as caught:
        asked(**fields)
    assert caught.value.param == param
