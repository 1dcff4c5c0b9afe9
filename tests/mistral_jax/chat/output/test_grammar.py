"""The grammars of calls, run by llguidance over real vocabularies: what they let pass and what not."""

from __future__ import annotations

import json
import random
from typing import Any

import jsonschema
import pytest

from mistral_jax.chat.output.deltas import CallArguments, CallBegin
from mistral_jax.chat.output.formats import TOOL_FORMATS, OutputFormat, tool_format
from mistral_jax.chat.output.grammar import CallGrammar, ToolSpec, tool_call_grammar
from mistral_jax.tokenizer import TekkenTokenizer
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.chat.output.completions import MISTRAL, Call, Items, output_format, parse, written
from tests.mistral_jax.chat.output.matching import accepts, matcher, sampled
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer, write_small_tekken

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "unit": {"enum": ["C", "F", "ü"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
        "near": {"$ref": "#/$defs/point"},
    },
    "required": ["city"],
    "additionalProperties": False,
    "$defs": {"point": {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}},
}
TOOLS = [ToolSpec("get", WEATHER), ToolSpec("get_weather", {"required": ["x"], "properties": {"x": {"const": 1}}})]
SCHEMAS: dict[str, Any] = {
    "get": WEATHER,
    "get_weather": {**(TOOLS[1].parameters or {}), "type": "object"},
    "now": {"type": "object", "maxProperties": 0},
}
ALL = [*TOOLS, ToolSpec("now")]

PARIS: Call = ("get", '{"city": "Pärîs", "unit": "ü", "near": [1.5, -2]}')
X: Call = ("get_weather", '{"x": 1}')
NOW: Call = ("now", "{}")


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ByteTableTokenizer]:
    """sentencepiece, tekken, and a small tekken with the control tokens of version 13."""
    path = tmp_path_factory.mktemp("tekken") / "tekken.json"
    write_small_tekken(path, "v13")
    return {"v3": tokenizer("v3"), "tekken": tokenizer("240911"), "small": TekkenTokenizer.from_file(path)}


def form_in(name: str, vocabulary: ByteTableTokenizer) -> OutputFormat:
    return output_format(name, vocabulary.control_tokens)


def passes(vocabulary: ByteTableTokenizer, grammar: CallGrammar, items: Items, *, after_trigger: bool = False) -> bool:
    text = grammar.after_trigger if after_trigger else grammar.whole
    return accepts(vocabulary, text, items, grammar.arguments)


CASES = [
    *(("v3", name) for name in ("mistral-v2", "mistral-v3", "hermes", "llama3")),
    *(("small", name) for name in TOOL_FORMATS),
    ("tekken", "mistral-v7"),
]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_calls_as_models_write_them(kind: str, name: str, vocabularies: dict[str, ByteTableTokenizer]) -> None:
    vocabulary = vocabularies[kind]
    form, control = form_in(name, vocabulary), vocabulary.control_tokens
    space = vocabulary.strips_leading_space
    one = tool_call_grammar(form, ALL, parallel=False, leading_space=space)
    several = tool_call_grammar(form, ALL, leading_space=space)
    called = written(name, [PARIS], control)
    assert passes(vocabulary, one, called)
    assert passes(vocabulary, several, called)
    three = written(name, [PARIS, X, NOW], control)
    assert passes(vocabulary, several, three) == (name != "llama3")
    assert not passes(vocabulary, one, three)
    after = called if name == "llama3" else called[1:]
    assert passes(vocabulary, one, after, after_trigger=True)
    assert passes(vocabulary, several, three[1:], after_trigger=True) == (name != "llama3")
    for wrong in (("nobody", "{}"), ("get", '{"town": "Paris"}'), ("get", "{}"), ("now", '{"a": 1}'), X[::-1]):
        assert not passes(vocabulary, several, written(name, [wrong], control)), wrong
    for text in (["Hello"], [*called, "Hello"], ["Hello", *called], [], called[:-1]):
        assert not passes(vocabulary, several, text)


def test_the_space_that_sentencepiece_puts_after_a_control_token() -> None:
    v3 = tokenizer("v3")
    call: Items = [v3.control_id("[TOOL_CALLS]"), ' [{"name": "now", "arguments": {}}]']
    assert passes(v3, tool_call_grammar(form_in("mistral-v3", v3), ALL, leading_space=True), call)
    assert v3.encode('[{"name"')[0] == v3.encode(' [{"name"', at_start=False)[0]


@pytest.mark.parametrize(
    ("name", "markers"), [("mistral-v13", ("[THINK]", "[/THINK]")), ("hermes", ("<think>", "</think>"))]
)
def test_reasoning_may_come_before(
    name: str, markers: tuple[str, str], vocabularies: dict[str, ByteTableTokenizer]
) -> None:
    small = vocabularies["small"]
    control = small.control_tokens
    form = output_format(name, control, markers)
    start, end = (control.get(text, text) for text in markers)
    calls = written(name, [PARIS], control)
    thought = "\nHm: <tool_call>, [TOOL_CALLS].\n\n"
    free = tool_call_grammar(form, ALL)
    begun = tool_call_grammar(form, ALL, in_reasoning=True)
    assert passes(small, free, [start, thought, end, "\n\n", *calls])
    assert passes(small, free, [start, end, *calls])
    assert passes(small, free, calls)
    assert not passes(small, free, [thought, end, *calls])
    assert passes(small, begun, [thought, end, "\n", *calls])
    assert not passes(small, begun, calls)
    assert not passes(small, tool_call_grammar(form_in(name, small), ALL), [start, thought, end, *calls])


def test_ids_of_v11(vocabularies: dict[str, ByteTableTokenizer]) -> None:
    small = vocabularies["small"]
    ids = small.control_tokens
    grammar = tool_call_grammar(form_in("mistral-v11", small), ALL)
    for call_id, is_one in (("abcDEF123", True), ("abc", False), ("call_1234", False)):
        call: Items = [ids["[TOOL_CALLS]"], "now", ids["[CALL_ID]"], call_id, ids["[ARGS]"], "{}"]
        assert passes(small, grammar, call) == is_one
    v13 = tool_call_grammar(form_in("mistral-v13", small), ALL)
    assert not passes(small, v13, [ids["[TOOL_CALLS]"], "now", ids["[CALL_ID]"], "abcDEF123", ids["[ARGS]"], "{}"])


def test_control_tokens_only_where_the_format_has_them(vocabularies: dict[str, ByteTableTokenizer]) -> None:
    """Neither in arguments nor as their letters in their place."""
    small = vocabularies["small"]
    ids = small.control_tokens
    grammar = tool_call_grammar(form_in("mistral-v13", small), ALL)
    assert passes(small, grammar, [ids["[TOOL_CALLS]"], "get", ids["[ARGS]"], '{"city": "[ARGS]"}'])
    assert not passes(small, grammar, ["[TOOL_CALLS]", "get", ids["[ARGS]"], '{"city": "x"}'])
    assert not passes(small, grammar, [ids["[TOOL_CALLS]"], "get", ids["[ARGS]"], '{"city": "', ids["[ARGS]"], '"}'])


def test_what_surrounds_the_arguments_is_forced(vocabularies: dict[str, ByteTableTokenizer]) -> None:
    small = vocabularies["small"]
    grammar = tool_call_grammar(form_in("mistral-v7", small), [ToolSpec("now")], parallel=False)
    forced = matcher(small, grammar.whole, grammar.arguments).compute_ff_tokens()
    assert small.decode(forced, skip_control=False).startswith('[TOOL_CALLS][{"name": "now", "arguments":')


def test_schemas_stand_beside_the_grammar() -> None:
    grammar = tool_call_grammar(form_in("mistral-v7", tokenizer("240911")), ALL)
    assert [name for name, _ in grammar.arguments] == ["arguments_0", "arguments_1", "arguments_2"]
    assert [json.loads(schema) for _, schema in grammar.arguments[:2]] == [WEATHER, SCHEMAS["get_weather"]]
    assert "city" not in grammar.whole
    assert all(f"@{name} " in grammar.whole for name, _ in grammar.arguments)


def test_what_is_refused() -> None:
    form = OutputFormat(tools=tool_format("mistral-v13", MISTRAL))
    for name in ("", "a b", "x" * 65, 'a"', "é", "a\n"):
        with pytest.raises(ValueError, match="no name of a tool"):
            tool_call_grammar(form, [ToolSpec(name)])
    for parameters in ({"type": "string"}, {"type": ["object", "null"]}):
        with pytest.raises(ValueError, match="another type than object"):
            tool_call_grammar(form, [ToolSpec("a", parameters)])
    with pytest.raises(ValueError, match="needs a format"):
        tool_call_grammar(OutputFormat(), ALL)
    with pytest.raises(ValueError, match="and a tool"):
        tool_call_grammar(form, [])


@pytest.mark.parametrize(("kind", "name"), [("v3", "mistral-v3"), ("small", "mistral-v13"), ("small", "hermes")])
def test_random_completions_are_valid_calls(kind: str, name: str, vocabularies: dict[str, ByteTableTokenizer]) -> None:
    """Against an independent validator, and through our parser."""
    vocabulary = vocabularies[kind]
    form = form_in(name, vocabulary)
    grammar = tool_call_grammar(form, ALL, leading_space=vocabulary.strips_leading_space)
    rng = random.Random(7)
    ended = calls = 0
    names: set[str] = set()
    for _ in range(30):
        items = sampled(vocabulary, grammar.whole, grammar.arguments, rng)
        if items is None:
            continue
        ended += 1
        deltas = parse(form, items, tools=list(SCHEMAS))
        assert all(isinstance(d, (CallBegin, CallArguments)) for d in deltas)
        for begin, arguments in zip(deltas[::2], deltas[1::2], strict=True):
            assert isinstance(begin, CallBegin)
            assert isinstance(arguments, CallArguments)
            jsonschema.validate(json.loads(arguments.text), SCHEMAS[begin.name])
            names.add(begin.name)
            calls += 1
    assert ended >= 12
    assert calls >= ended
    assert names == set(SCHEMAS)


def test_many_tools_are_compiled_in_seconds() -> None:
    properties = {f"field_{i}": {"type": "string", "description": "x" * 100} for i in range(12)}
    tools = [ToolSpec(f"tool_{i}", {"type": "object", "properties": properties}) for i in range(128)]
    v3 = tokenizer("v3")
    grammar = tool_call_grammar(form_in("mistral-v3", v3), tools)
    matcher(v3, 'start: "x"')
    with cpu_seconds_at_most(5.0):
        matcher(v3, grammar.whole, grammar.arguments).compute_bitmask()
