"""From the fields that ask for a format of the completion to its grammar."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec

from mistral_jax.grammar.grammar import Grammar
from serving.api.errors import InvalidRequestError
from serving.api.schemas import ResponseFormat, SamplingFields, StructuredOutputs, TypedGrammar


@dataclass(frozen=True, slots=True)
class RequestedFormat:
    """What the completion must match."""

    grammar: Grammar
    param: str
    """The field that asks for it."""


def output_format(body: SamplingFields) -> RequestedFormat | None:
    """The format that a request asks for; None: text. Whether the grammar is valid is not checked.

    Raises:
      InvalidRequestError: two fields ask for a format, or one has no valid value.
    """
    found = list(_formats(body))
    if len(found) > 1:
        names = " and ".join(each.param for each in found[:2])
        raise InvalidRequestError(f"{names}: both ask for a format; send one of them", param=found[1].param)
    return found[0] if found else None


def _formats(body: SamplingFields) -> Iterator[RequestedFormat]:
    if body.response_format is not None:
        yield from _response_format(body.response_format)
    if body.structured_outputs is not None:
        yield from _structured_outputs(body.structured_outputs)
    for name, schema in (("guided_json", body.guided_json), ("json_schema", body.json_schema)):
        if schema is not None:
            yield RequestedFormat(_schema(schema, name), name)
    for name, pattern in (("guided_regex", body.guided_regex), ("regex", body.regex)):
        if pattern is not None:
            yield RequestedFormat(Grammar.regex(pattern), name)
    if body.guided_choice is not None:
        yield RequestedFormat(Grammar.choice(body.guided_choice), "guided_choice")
    for name, grammar in (("guided_grammar", body.guided_grammar), ("grammar", body.grammar)):
        if isinstance(grammar, TypedGrammar):
            yield RequestedFormat(_typed(grammar), name)
        elif grammar:
            yield RequestedFormat(_grammar(grammar), name)
    if body.ebnf is not None:
        yield RequestedFormat(Grammar.gbnf(body.ebnf), "ebnf")


def _response_format(wanted: ResponseFormat) -> Iterator[RequestedFormat]:
    match wanted.type:
        case "text":
            return
        case "json_object":
            if wanted.schema is None:
                yield RequestedFormat(Grammar.json_object(), "response_format")
            else:
                param = "response_format.schema"
                yield RequestedFormat(_schema(wanted.schema, param), param)
        case "json_schema":
            param = "response_format.json_schema"
            named = wanted.json_schema
            if named is None or named.schema is None:
                raise InvalidRequestError(f"{param}: expected an object with a name and a schema", param=param)
            param += ".schema"
            yield RequestedFormat(_schema(named.schema, param, strict=bool(named.strict)), param)
        case other:
            raise InvalidRequestError(
                f"response_format.type: {other[:50]!r} is not known; expected text, json_object or json_schema",
                param="response_format.type",
            )


def _structured_outputs(wanted: StructuredOutputs) -> Iterator[RequestedFormat]:
    where = "structured_outputs"
    if wanted.json is not None:
        yield RequestedFormat(_schema(wanted.json, f"{where}.json"), f"{where}.json")
    if wanted.regex is not None:
        yield RequestedFormat(Grammar.regex(wanted.regex), f"{where}.regex")
    if wanted.choice is not None:
        yield RequestedFormat(Grammar.choice(wanted.choice), f"{where}.choice")
    if wanted.grammar is not None:
        yield RequestedFormat(_grammar(wanted.grammar), f"{where}.grammar")
    if wanted.json_object:
        yield RequestedFormat(Grammar.json_object(), f"{where}.json_object")


def _schema(schema: Any, param: str, *, strict: bool = False) -> Grammar:
    if isinstance(schema, str):
        return Grammar.json_schema(schema, strict=strict)
    if not isinstance(schema, dict | bool):
        raise InvalidRequestError(f"{param}: expected a JSON schema, which is an object", param=param)
    return Grammar.json_schema(msgspec.json.encode(schema).decode(), strict=strict)


def _grammar(text: str) -> Grammar:
    return Grammar.gbnf(text) if "::=" in text else Grammar.lark(text)


def _typed(grammar: TypedGrammar) -> Grammar:
    if grammar.type == "json_schema":
        return _schema(grammar.value, "grammar.value")
    kinds = {"lark": Grammar.lark, "gbnf": Grammar.gbnf, "regex": Grammar.regex}
    if grammar.type not in kinds:
        raise InvalidRequestError(
            f"grammar.type: {grammar.type[:50]!r} is not known; expected {', '.join(kinds)} or json_schema",
            param="grammar.type",
        )
    if not isinstance(grammar.value, str):
        raise InvalidRequestError("grammar.value: expected a text", param="grammar.value")
    return kinds[grammar.type](grammar.value)
