"""Each keyword of JSON Schema is held, or refused by name; nothing that a schema rejects is taken."""

from __future__ import annotations

import json
import random
import re
from decimal import Decimal
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from mistral_jax.grammar.grammar import Grammar, GrammarError
from mistral_jax.grammar.json_schema import canonical
from tests.mistral_jax.grammar.walks import compiler, takes

KIND = "byte_level"


def taken(schema: Any, value: Any) -> bool:
    """Whether the grammar takes a value as `json.dumps` writes it, or a text as it is."""
    text = value if isinstance(value, Text) else json.dumps(value, ensure_ascii=False)
    return takes(KIND, Grammar.json_schema(json.dumps(schema)), str(text))


class Text(str):
    """JSON text."""


CLOSED: dict[str, Any] = {"additionalProperties": False}

HELD: tuple[tuple[Any, list[Any], list[Any]], ...] = (
    (True, [1, {}, "a", None, [[]]], []),
    ({}, [1.5e3, {"a": {"b": []}}], []),
    ({"type": "null"}, [None], [0, ""]),
    ({"type": "boolean"}, [True, False], [None]),
    ({"type": "integer"}, [0, -12, 10**20], [1.5, "1"]),
    ({"type": "number"}, [0, -1.5, 1e300, Text("1E-5")], [Text("01"), Text("1."), Text(".5"), Text("NaN")]),
    ({"type": ["string", "null"]}, ["a", None], [1]),
    ({"type": ["integer", "number"]}, [1, 1.5], [None]),
    ({"const": 'a/b"\\\né'}, ['a/b"\\\né'], ["a"]),
    ({"const": {"a": [1, None], "b": 0.5}}, [{"a": [1, None], "b": 0.5}], [{"a": [1, None]}, {"a": [1], "b": 0.5}]),
    ({"enum": [1, "1", None, True, [2], {"a": 3}]}, [1, "1", None, True, [2], {"a": 3}], [2, False, [], {}]),
    ({"enum": [1, "a", None], "type": "string"}, ["a"], [1, None]),
    ({"enum": [0]}, [0], [False]),
    ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "日本語", "😀é"], ["a", "abcd"]),
    ({"minLength": 2.0}, ["ab", 1], ["a"]),
    ({"type": "string", "pattern": "^a+$", "minLength": 2}, ["aa"], ["a", "ab"]),
    ({"pattern": "b"}, ["abc", 1, {}], ["a"]),
    ({"type": "integer", "minimum": -3, "maximum": 12}, [-3, 0, 12], [-4, 13]),
    ({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 3}, [1, 2], [0, 3]),
    ({"type": "number", "exclusiveMinimum": 10, "maximum": 10.5}, [10.25, 10.5], [10, 10.0, 10.75]),
    ({"type": "number", "minimum": -10.5, "exclusiveMaximum": -10}, [-10.5, -10.25], [-10, -9, -11]),
    ({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}, [-0.25], [0, Text("-0"), 0.5]),
    ({"minimum": 1.5, "exclusiveMinimum": True}, [2, "a"], [1.5, 1]),  # draft 4
    ({"minimum": 1, "exclusiveMinimum": False}, [1], [0]),
    ({"allOf": [{"exclusiveMinimum": 0}, {"type": "number"}, {"maximum": 0.5}]}, [0.5, 0.1], [0, 0.75]),
    ({"type": "integer", "multipleOf": 3, "minimum": 4}, [6, 9], [3, 5]),
    ({"multipleOf": 0.5}, [1, 1.5, "a"], [1.25]),
    ({"allOf": [{"multipleOf": 2}, {"multipleOf": 3}], "type": "integer"}, [6, 0, -12], [2, 3]),
    ({"type": "array", "items": {"type": "integer"}}, [[], [1], [1, 2, 3]], [["a"], {}]),
    ({"type": "array", "minItems": 1, "maxItems": 2}, [[1], ["a", {}]], [[], [1, 2, 3]]),
    ({"prefixItems": [{"const": 1}], "items": {"const": 2}}, [[], [1], [1, 2, 2], "x"], [[2], [1, 1]]),
    ({"prefixItems": [True], "items": False}, [[], [5]], [[5, 5]]),
    ({"items": [{"const": 1}], "additionalItems": False}, [[1], []], [[1, 1], [2]]),  # before 2020-12
    ({"items": {"const": 1}, "additionalItems": False}, [[1, 1]], [[2]]),
    ({"type": "array", "uniqueItems": False}, [[1, 1]], []),
    ({"type": "array", "uniqueItems": True, "maxItems": 1}, [[1]], [[1, 1]]),
    ({"type": "array", "unevaluatedItems": False}, [[]], [[1]]),
    ({"type": "object"}, [{}, {"a": 1, "b": {"c": []}}], [[]]),
    ({"type": "object", "properties": {"a": {"type": "null"}}}, [{}, {"a": None}, {"b": 1}], [{"a": 1}]),
    ({"properties": {"a": {}, "b": {}}, **CLOSED}, [{}, {"a": 1}, {"b": 1}, {"a": 1, "b": 2}], [{"c": 1}]),
    ({"properties": {"a": {}}, "required": ["a"], **CLOSED}, [{"a": 1}], [{}]),
    ({"properties": {"a": False}, **CLOSED}, [{}], [{"a": 1}]),
    ({"required": ["x y"]}, [{"x y": 1}, 3], [{}]),
    ({"additionalProperties": {"type": "integer"}}, [{}, {"a": 1, "b": 2}], [{"a": "b"}]),
    ({"patternProperties": {"^a": {"const": 1}, "^b": True}, **CLOSED}, [{"ab": 1, "b": 2}], [{"a": 2}, {"c": 1}]),
    (
        {"properties": {"ab": {"minimum": 1}}, "patternProperties": {"^a": {"type": "integer"}}},
        [{"ab": 1}],
        [{"ab": 0}],
    ),
    ({"unevaluatedProperties": False, "properties": {"a": {}}}, [{"a": 1}], [{"b": 1}]),
    ({"propertyNames": {"pattern": "^a"}}, [{}, {"ab": 1}], [{"b": 1}]),
    ({"propertyNames": {"maxLength": 2}}, [{"ab": 1}], [{"abc": 1}]),
    (
        {"propertyNames": {"enum": ["a", "b"]}, "additionalProperties": {"type": "null"}},
        [{"b": None}],
        [{"b": 1}, {"c": None}],
    ),
    ({"propertyNames": False}, [{}], [{"a": 1}]),
    ({"propertyNames": True}, [{"a": 1}], []),
    ({"type": "object", "minProperties": 1}, [{"a": 1}], [{}]),
    ({"type": "object", "maxProperties": 1}, [{}, {"a": 1}], [{"a": 1, "b": 2}]),
    ({"properties": {"a": {}, "b": {}}, "minProperties": 1, **CLOSED}, [{"a": 1}, {"b": 1}, {"a": 1, "b": 1}], [{}]),
    ({"properties": {"a": {}, "b": {}}, "maxProperties": 1, **CLOSED}, [{}, {"a": 1}, {"b": 1}], [{"a": 1, "b": 1}]),
    ({"anyOf": [{"type": "integer"}, {"maxLength": 1}]}, [1, "a", None], ["ab"]),
    ({"allOf": [{"required": ["a"]}, {"properties": {"a": {"type": "integer"}}}]}, [{"a": 1}, 2], [{}, {"a": "b"}]),
    ({"oneOf": [{"type": "integer"}, {"type": "string"}]}, [1, "a"], [None, 1.5]),
    ({"oneOf": [{"maximum": 2, "type": "number"}, {"minimum": 3, "type": "number"}]}, [2, 3], [2.5]),
    (
        {
            "oneOf": [
                {"properties": {"k": {"const": c}, c: {}}, "required": ["k", c], "type": "object", **CLOSED}
                for c in "ab"
            ]
        },
        [{"k": "a", "a": 1}, {"k": "b", "b": 1}],
        [{"k": "a", "b": 1}, {"k": "a", "a": 1, "b": 1}],
    ),
    ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "integer"}}}, [1], ["a"]),
    ({"$ref": "#/definitions/a~1b%25", "definitions": {"a/b%": {"const": 1}}}, [1], [2]),
    ({"$ref": "#here", "$defs": {"a": {"$anchor": "here", "const": 1}}}, [1], [2]),
    ({"$id": "https://x.org/s.json", "$ref": "https://x.org/s.json#/$defs/a", "$defs": {"a": {"const": 1}}}, [1], [2]),
    ({"properties": {"a": {"const": 1}, "b": {"$ref": "#/properties/a"}}, **CLOSED}, [{"b": 1}], [{"b": 2}]),
    ({"$ref": "#/$defs/a", "maximum": 3, "$defs": {"a": {"type": "integer", "minimum": 2}}}, [2, 3], [1, 4]),
    (
        {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}},
        [[], [[], [[]]]],
        [[1], {}],
    ),
    ({"properties": {"child": {"$ref": "#"}}, **CLOSED}, [{}, {"child": {"child": {}}}], [{"child": {"x": 1}}]),
    ({"not": False}, [1], []),
    ({"if": {"type": "string"}}, [1, "a"], []),
    ({"then": False}, [1], []),
    ({"dependentRequired": {"a": []}}, [{"a": 1}], []),
    ({"contains": {"const": 1}, "minContains": 0}, [[2]], []),
    ({"title": "t", "description": "d", "default": 1, "examples": [2], "deprecated": True, "$comment": "c"}, ["a"], []),
    ({"x-order": 1, "readOnly": True, "discriminator": {"propertyName": "k"}, "type": "null"}, [None], [1]),
    ({"type": "integer", "format": "int32"}, [2**31 - 1], [2**31]),
    ({"type": "number", "format": "double"}, [1.5], ["a"]),
    ({"type": "string", "contentEncoding": "base64"}, ["YQ==", ""], ["a", "YQ="]),
)
"""Schemas, what they take, and what not."""


@pytest.mark.parametrize(("schema", "yes", "no"), HELD, ids=lambda value: json.dumps(value)[:60])
def test_a_keyword_is_held(schema: Any, yes: list[Any], no: list[Any]) -> None:
    for value in yes:
        assert taken(schema, value), value
    for value in no:
        assert not taken(schema, value), value
    draft4 = isinstance(schema, dict) and (
        "exclusiveMinimum" in schema and isinstance(schema["exclusiveMinimum"], bool)
    )
    if draft4 or (isinstance(schema, dict) and (isinstance(schema.get("items"), list) or "format" in schema)):
        return
    validator = Draft202012Validator(schema)
    for value in yes:
        assert validator.is_valid(json.loads(value) if isinstance(value, Text) else value), value


REFUSED: tuple[tuple[Any, str, str], ...] = (
    ({"not": {"type": "null"}}, "not", "$"),
    ({"properties": {"a": {"if": {"const": 1}, "then": False}}}, "if", "$.properties.a"),
    ({"items": {"contains": {"const": 1}}}, "contains", "$.items"),
    ({"dependentRequired": {"a": ["b"]}}, "dependentRequired", "$"),
    ({"dependentSchemas": {"a": False}}, "dependentSchemas", "$"),
    ({"dependencies": {"a": ["b"]}}, "dependencies", "$"),
    ({"uniqueItems": True}, "uniqueItems", "$"),
    ({"unevaluatedProperties": False, "allOf": [{}]}, "unevaluatedProperties", "$"),
    ({"unevaluatedItems": False, "$ref": "#/$defs/a", "$defs": {"a": {}}}, "unevaluatedItems", "$"),
    ({"$dynamicRef": "#a"}, "$dynamicRef", "$"),
    ({"$recursiveRef": "#"}, "$recursiveRef", "$"),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "oneOf", "$"),
    ({"oneOf": [{"required": ["a"]}, {"required": ["b"]}]}, "oneOf", "$"),
    ({"allOf": [{"anyOf": [{"format": "regex"}]}]}, "format", "$.allOf[0].anyOf[0]"),
    ({"properties": {"a b": {"pattern": "(?=a)"}}}, "pattern", "$.properties['a b']"),
    ({"patternProperties": {"^a": {}, "a$": {}}}, "patternProperties", "$"),
    ({"patternProperties": {"(a)\\1": {}}}, "patternProperties", "$"),
    ({"propertyNames": {"pattern": "^a"}, "properties": {"b": {}}}, "propertyNames", "$"),
    ({"minProperties": 2}, "minProperties", "$"),
    ({"properties": {"a": {}}, "maxProperties": 1}, "maxProperties", "$"),
    ({"const": 2**53 + 1}, "const", "$"),
    ({"enum": [1.2345678901234567]}, "enum", "$"),
    ({"const": "\x00"}, "const", "$"),
    ({"const": "\ud800"}, "const", "$"),
    ({"maximum": 1e300}, "maximum", "$"),
    ({"multipleOf": 0.07}, "multipleOf", "$"),
    ({"minLength": 10**6}, "minLength", "$"),
    ({"maxItems": 10**6}, "maxItems", "$"),
    ({"$ref": "other.json"}, "$ref", "$"),
    ({"$ref": "#/$defs/none"}, "$ref", "$"),
    ({"$ref": "#none"}, "$ref", "$"),
    ({"$schema": "http://json-schema.org/draft-03/schema#"}, "$schema", "$"),
    ({"nullable": True, "type": "string"}, "nullable", "$"),
    ({"x-guidance": {"whitespace_flexible": True}}, "x-guidance", "$"),
    ({"minlength": 3}, "minlength", "$"),
    ({"contentMediaType": "application/json"}, "contentMediaType", "$"),
    ({"contentEncoding": "base32"}, "contentEncoding", "$"),
)


@pytest.mark.parametrize(("schema", "keyword", "where"), REFUSED, ids=lambda value: json.dumps(value)[:60])
def test_what_cannot_be_held_is_refused_with_keyword_and_place(schema: Any, keyword: str, where: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(f"`{keyword}` at {where} cannot be held: ")):
        canonical(json.dumps(schema))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is no JSON"),
        ('{"a": NaN}', "has NaN"),
        ('{"type": "null", "type": "string"}', "the key 'type' twice"),
        ("[]", "must be an object or a boolean"),
        ('{"type": "strng"}', "`type` at $ must be one of null"),
        ('{"properties": []}', "`properties` at $ must be an object"),
        ('{"items": 3}', "The schema at $.items must be"),
        ('{"required": ["a", 1]}', "`required` at $ must be a string"),
        ('{"minimum": "1"}', "`minimum` at $ must be a number"),
        ('{"minLength": -1}', "`minLength` at $ must be an integer from 0 on"),
        ('{"anyOf": []}', "`anyOf` at $ must be an array that is not empty"),
        ('{"enum": []}', "`enum` at $ must be an array that is not empty"),
        ('{"multipleOf": 0}', "`multipleOf` at $ must be greater than 0"),
        ("[" * 101 + "]" * 101, "nested in 101 levels"),
        ('{"const": "' + "a" * 131_072 + '"}', "more than 131,072 bytes"),
        ('{"enum": [' + "1," * 10_000 + "1]}", "10,003 values"),
    ],
)
def test_what_is_no_schema_is_refused(text: str, told: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(told)):
        canonical(text)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"], "type": "object"},
        {"type": "array", "minItems": 1, "items": {"$ref": "#"}},
        {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"anyOf": [{"$ref": "#/$defs/a"}]}}},
    ],
)
def test_a_schema_without_finite_values_is_refused(schema: Any) -> None:
    with pytest.raises(GrammarError, match="no finite value"):
        canonical(json.dumps(schema))


@pytest.mark.parametrize(
    "schema",
    [
        False,
        {"allOf": [{"type": "string"}, {"type": "integer"}]},
        {"type": "integer", "minimum": 3, "maximum": 2},
        {"minLength": 3, "maxLength": 2, "type": "string"},
        {"type": "string", "pattern": "^\\x01$"},
        {"required": ["a"], "properties": {"a": False}, "type": "object"},
        {"enum": [1], "type": "string"},
    ],
)
def test_a_schema_that_nothing_matches_is_refused(schema: Any) -> None:
    with pytest.raises(GrammarError, match="No value matches the schema"):
        compiler(KIND).compile(Grammar.json_schema(json.dumps(schema)))


def test_properties_come_in_the_order_of_the_schema() -> None:
    schema = {"properties": {"b": {}, "a": {}}, "required": ["c"]}
    assert taken(schema, {"b": 1, "a": 2, "c": 3, "z": 4})
    assert not taken(schema, {"a": 2, "b": 1, "c": 3})
    assert not taken(schema, {"c": 3, "b": 1})


def test_values_are_written_in_one_way() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string"}}}, "required": ["a"]}
    assert taken(schema, Text('{"a": ["b", "c"]}'))
    for text in (
        '{"a":["b", "c"]}',
        '{"a": ["b","c"]}',
        '{ "a": []}',
        '{"a": []}\n',
        '{"a": ["\\u0062"]}',
        '{"a": ["\\/"]}',
    ):
        assert not taken(schema, Text(text)), text


def test_no_name_is_written_as_if_it_were_another() -> None:
    schema = {"properties": {"a": {"type": "integer"}}}
    for text in ('{"\\u0061": "x"}', '{"a": 1, "a": "x"}', '{"a": "x"}'):
        assert not taken(schema, Text(text)), text


def test_bounds_of_numbers_are_exact() -> None:
    """Around random bounds, as decimals."""
    chance = random.Random(0)
    ends = [Decimal(x) for x in ("0", "1", "-1", "10", "-10.5", "0.1", "-0.1", "9.99", "100", "0.001", "1234.5", "-7")]
    steps = [Decimal(x) for x in ("0", "1", "-1", "0.1", "-0.1", "0.001", "-0.001", "0.5", "-0.5", "90")]
    count = 0
    for _ in range(60):
        low, high = sorted(chance.sample(ends, 2))
        keys = chance.choice(("minimum", "exclusiveMinimum")), chance.choice(("maximum", "exclusiveMaximum"))
        schema = {"type": "number", keys[0]: float(low), keys[1]: float(high)}
        for end, step in ((end, step) for end in (low, high) for step in steps):
            value = end + step
            valid = (low < value or (low == value and keys[0] == "minimum")) and (
                value < high or (value == high and keys[1] == "maximum")
            )
            assert taken(schema, Text(f"{value.normalize():f}")) == valid, (schema, value)
            count += valid
    assert count > 100


def test_formats_hold_what_they_name() -> None:
    for name, yes, no in (
        ("date", ["2024-02-29", "2000-02-29", "1999-12-31"], ["2023-02-29", "1900-02-29", "2024-04-31", "2024-1-1"]),
        ("time", ["23:59:59Z", "01:02:03.5+01:00"], ["24:00:00Z", "23:59:60Z", "12:00:00"]),
        ("date-time", ["2024-02-29T00:00:00Z"], ["2024-02-29 00:00:00Z", "2023-02-29T00:00:00Z"]),
        ("duration", ["P1D", "PT1H30M", "P2W", "P1Y2M3DT4S"], ["P", "PT", "P1W1D", "1D"]),
        ("ipv4", ["0.0.0.0", "255.255.255.255"], ["256.0.0.1", "1.2.3", "01.2.3.4"]),
        ("ipv6", ["::", "::1", "1::", "1:2:3:4:5:6:7:8", "1:2::8", "1:2:3:4:5:6:7::"], ["1:2:3", ":::", "1::2::3"]),
        ("uuid", ["2EB8AA08-aa98-11ea-b4aa-73b441d16380"], ["2eb8aa08aa9811eab4aa73b441d16380"]),
        ("email", ["joe.bloggs@example.com", "a+b@c"], [".a@b", "a..b@c", "a@", "@b", "a b@c"]),
        ("hostname", ["example.com", "a", "a-b.c"], ["-a", "a-", "a..b", "a_b", ""]),
        ("uri", ["https://a.b/c?d=e#f", "urn:x:y", "http://[::1]:80/"], ["//a", "a b:c", "http://[x]/", "x"]),
        ("json-pointer", ["", "/a~1b/0"], ["a", "/~2"]),
    ):
        schema = {"type": "string", "format": name}
        checker = Draft202012Validator.FORMAT_CHECKER
        for text in yes:
            assert taken(schema, text), (name, text)
            checker.check(text, name)
        for text in no:
            assert not taken(schema, text), (name, text)


def test_any_object_has_bounded_whitespace() -> None:
    grammar = Grammar.json_object()
    for text in (
        "{}",
        '{"a":1,"b":[{}]}',
        '{"a": 1, "b": [1, 2]}',
        '{\n  "a": {\n    "b": "c"\n  }\n}',
        '{\n\t"a": 1\n}',
    ):
        assert takes(KIND, grammar, text), text
    for text in ("[]", "1", " {}", "{} ", '{"a":  1}', "{\n\n}", "{" + "\n" + " " * 41 + "}", '{"a": }'):
        assert not takes(KIND, grammar, text), text
