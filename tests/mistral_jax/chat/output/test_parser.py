"""The parser of completions: what it finds in each format, whatever the pieces, and that nothing is lost."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.chat.output.deltas import CallArguments, CallBegin, ContentText
from mistral_jax.chat.output.formats import TOOL_FORMATS, OutputFormat
from mistral_jax.chat.output.parser import OutputParser
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.chat.output.completions import (
    MISTRAL,
    TAGS,
    TOOLS,
    Items,
    called,
    content,
    output_format,
    parse,
    reasoning,
    written,
)

PARIS = ("get_weather", '{"city": "Pärîs ]}", "days": [1, 2.5]}')
ROME = ("get", '{"a": {"b": "\\"}\\\\"}}')
NOW = ("now", "{}")
THINK = ("<think>", "</think>")
MISTRAL_THINK = ("[THINK]", "[/THINK]")


@pytest.mark.parametrize("control_tokens", [MISTRAL, TAGS, {}], ids=["mistral", "tags", "letters"])
@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_calls_of_each_format(name: str, control_tokens: dict[str, int]) -> None:
    form = output_format(name, control_tokens)
    for calls in ([PARIS], [PARIS, ROME, NOW]):
        items = written(name, calls, control_tokens)
        assert parse(form, items) == called(*calls)
        assert parse(form, [*items, "\n"]) == called(*calls)
    if name != "llama3":
        items = ["Let me see. \n", *written(name, [PARIS], control_tokens)]
        assert parse(form, items) == [content("Let me see."), *called(PARIS)]


def test_the_space_that_sentencepiece_puts_after_a_control_token() -> None:
    assert parse(output_format("mistral-v3"), [9, ' [{"name": "now", "arguments": {}}]']) == called(NOW)
    assert parse(output_format("mistral-v13"), [9, " now", 20, " {}"]) == called(NOW)


def test_ids_that_the_model_writes() -> None:
    """Those of v11 come before the arguments, and are used if they have the form and are new; in the lists of v3 and
    v7 they come after them, too late for a stream."""
    v11 = [9, "get", 21, "abcdefghi", 20, "{}", 9, "get", 21, "abcdefghi", 20, "{}", 9, "get", 21, "x", 20, "{}"]
    begun = [d for d in parse(output_format("mistral-v11"), v11) if isinstance(d, CallBegin)]
    assert [d.id for d in begun] == ["abcdefghi", "id0", "id1"]
    v3 = [9, '[{"name": "now", "arguments": {}, "id": "abcdefghi"}]']
    assert parse(output_format("mistral-v3"), v3)[0] == CallBegin(0, "id0", "now")


def test_lists_after_the_opening_of_later_formats() -> None:
    assert parse(output_format("mistral-v13"), written("mistral-v7", [PARIS, NOW])) == called(PARIS, NOW)


@pytest.mark.parametrize(
    ("name", "items"),
    [
        ("mistral-v3", [9, '[{"arguments": {"a": 1}, "name": "get"}]']),
        ("mistral-v3", [9, '[{"id": "abcdefghi", "type": "function", "arguments" : {"a": 1},\n"name": "get"}\n]']),
        ("hermes", ['<tool_call>{"parameters": {"a": 1}, "name": "get"}</tool_call>']),
        ("hermes", ['<tool_call>\n{"name": "\\u0067et", "arguments": {"a": 1}}']),
        ("llama3", ['\n\n{"name": "get", "arguments": {"a": 1}}']),
    ],
)
def test_call_objects_in_other_words(name: str, items: Items) -> None:
    assert parse(output_format(name), items) == called(("get", '{"a": 1}'))


def test_python_tag() -> None:
    form = output_format("llama3", TAGS)
    assert parse(form, [35, '{"name": "now", "parameters": {}}']) == called(NOW)
    assert parse(form, [35, "print(1)"]) == [content("print(1)")]


def test_a_call_without_arguments_has_empty_ones() -> None:
    assert parse(output_format("hermes"), ['<tool_call>{"name": "now"}</tool_call>']) == called(NOW)


# Reasoning.


@pytest.mark.parametrize(
    ("control_tokens", "markers"), [(MISTRAL, MISTRAL_THINK), (TAGS, THINK), ({}, THINK), ({}, MISTRAL_THINK)]
)
def test_reasoning(control_tokens: dict[str, int], markers: tuple[str, str]) -> None:
    form = output_format("mistral-v13" if markers == MISTRAL_THINK else "hermes", control_tokens, markers)
    start, end = (control_tokens.get(text, text) for text in markers)
    calls = written(form.tools.name if form.tools else "", [PARIS], control_tokens)
    expected = [reasoning("Hm,\n\nwell."), content("So: 4 \n3")]
    assert parse(form, [start, "\nHm,\n\nwell.\n", end, "\n\nSo: 4 \n3"]) == expected
    assert parse(form, ["Hm,\n\nwell.\n", end, "\n\nSo: 4 \n3"], in_reasoning=True) == expected
    assert parse(form, [start, "Hm", end, "\n\n", *calls]) == [reasoning("Hm"), *called(PARIS)]
    assert parse(form, [start, "Hm"]) == [reasoning("Hm")]
    assert parse(form, [start, "\n\n", end, "\n\nHi"]) == [content("Hi")]
    assert parse(form, [start, "Hm", end, "Hi"], tools=None) == [reasoning("Hm"), content("Hi")]


def test_letters_in_reasoning_begin_no_call() -> None:
    form = output_format("hermes", {}, THINK)
    think = '<think>Use <tool_call>{"name": "now"}</tool_call>?</think>'
    assert parse(form, [think, "No."]) == [
        reasoning('Use <tool_call>{"name": "now"}</tool_call>?'),
        content("No."),
    ]


def test_a_control_token_in_reasoning_begins_calls() -> None:
    form = output_format("mistral-v13", MISTRAL, MISTRAL_THINK)
    assert parse(form, [22, "Hm", *written("mistral-v13", [NOW])]) == [reasoning("Hm"), *called(NOW)]


def test_a_tag_in_the_middle_of_a_text_is_text() -> None:
    text = "The tag <think> begins reasoning, </think> ends it."
    assert parse(output_format(None, {}, THINK), [text]) == [content(text)]


def test_mistrals_models_may_reason_several_times() -> None:
    form = output_format(None, MISTRAL, MISTRAL_THINK)
    assert parse(form, ["A", 22, "b", 23, "C"]) == [content("A"), reasoning("b"), content("C")]


# What is no call is text, and nothing of it is lost.


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n x \n\n",
        "<tool_call",
        "a <b> <tool_calls>",
        "<tool_call></tool_call>",
        "\n<tool_call>\nnone\n</tool_call>\n",
        '<tool_call>{"name": "nobody", "arguments": {}}</tool_call>',
        '<tool_call>{"name": 1}</tool_call>',
        '<tool_call>{"nom": "get"}</tool_call>',
        '<tool_call>{"name": "get" "arguments": {}}</tool_call>',
        '<tool_call>{"name": "get", "arguments": "{}"}</tool_call>',
        '<tool_call>{"arguments": {"a": ]}, "name": "get"}</tool_call>',
        '<tool_call>{"name": "get", "name": "get"}',
        f'<tool_call>{{"name": "{"get" * 999}"}}</tool_call>',
        '<tool_call>{"name": "\\x"}</tool_call>',
        "<tool_call> <tool_call>[",
        "[TOOL_CALLS]get[ARGS]{}",
        "<function=get>",
        '{"name": "get", "parameters": {}}',
    ],
)
def test_what_is_no_call_is_text(text: str) -> None:
    form = output_format("hermes")
    assert parse(form, [text]) == ([content(text)] if text else [])
    assert parse(form, list(text)) == ([content(text)] if text else [])


def test_json_that_is_no_call_is_text() -> None:
    for text in ('{"answer": 42}', ' {"name": "John"}', "{", '{"name": "get", "parameters": [1]}', "[{}]", "{}"):
        assert parse(output_format("llama3"), [text]) == [content(text)]


@pytest.mark.parametrize(
    ("name", "items", "text"),
    [
        ("mistral-v3", [9, "Hello"], "Hello"),
        ("mistral-v3", ["a ", 9, "[]b"], "a []b"),
        ("mistral-v3", ["a", 9, 9], "a"),
        ("mistral-v13", [9, "get"], "get"),
        ("mistral-v13", [9, "get a life"], "get a life"),
        ("mistral-v13", [9, "nobody", 20, "{}"], "nobody{}"),
        ("mistral-v13", [9, 20, "{}"], "{}"),
        ("mistral-v13", [9, "now", 20, "[1]"], "now[1]"),
        ("mistral-v11", [9, "now", 21, "abcdefghi", "x" * 600], "now" + "abcdefghi" + "x" * 600),
        ("mistral-v11", [9, "now", 21, "abcdefghi", 21, "y"], "nowabcdefghiy"),
    ],
)
def test_control_tokens_of_what_is_no_call_have_no_text(name: str, items: Items, text: str) -> None:
    assert parse(output_format(name), items) == [content(text)]


def test_a_call_that_is_none_after_one_that_is() -> None:
    first = written("mistral-v3", [PARIS])[1]
    assert isinstance(first, str)
    for rest in (', {"name": "nobody"}]', " x", ', "y"'):
        assert parse(output_format("mistral-v3"), [9, first[:-1], rest]) == [*called(PARIS), content(rest)]


def test_text_after_the_calls() -> None:
    for name in TOOL_FORMATS:
        items = [*written(name, [PARIS]), "\nDone."]
        assert parse(output_format(name), items) == [*called(PARIS), content("\nDone.")], name


def test_arguments_that_have_begun_are_passed_on_as_they_are() -> None:
    """They may have been streamed by then: like OpenAI's, they can be broken."""
    hermes, v13, v3 = (output_format(name) for name in ("hermes", "mistral-v13", "mistral-v3"))
    broken = "{'a': (]"
    assert parse(hermes, [f'<tool_call>{{"name": "get", "arguments": {broken}</tool_call>x']) == [
        *called(("get", broken)),
        content("x"),
    ]
    assert parse(v13, [9, "get", 20, broken, "x", 9, "now", 20, "{}"]) == called(("get", broken + "x"), NOW)
    assert parse(v3, [9, f'[{{"name": "get", "arguments": {broken}']) == called(("get", broken))
    for form, items in ((v13, [9, "get", 20, '{"a": "']), (v3, [9, '[{"name": "get", "arguments": {"a": "'])):
        assert parse(form, items) == called(("get", '{"a": "'))


def test_without_tools_a_call_is_text() -> None:
    text = '<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    assert parse(output_format("hermes"), [text], tools=None) == [content(text)]
    assert parse(output_format("mistral-v13"), [9, "now", 20, "{}"], tools=None) == [content("now{}")]
    assert parse(output_format("hermes"), [text], tools=()) == [content(text)]


# Streaming.


def test_text_is_passed_on_as_soon_as_it_is_certain() -> None:
    parser = OutputParser(output_format("hermes"), tools=TOOLS)
    pushed = [parser.push(piece) for piece in ("Hello, ", "<tool", "s", "> ", "<tool_call>", "{", "x")]
    assert pushed == [
        *([content("Hello,")], [], [content(" <tools")], [content(">")]),
        *([], [], [content(" <tool_call>{x")]),
    ]
    assert parser.finish() == []


def test_arguments_are_passed_on_piece_by_piece() -> None:
    for name in TOOL_FORMATS:
        parser = OutputParser(output_format(name), tools=TOOLS, new_id=lambda: "x")
        items = written(name, [PARIS])
        pieces = [piece for item in items for piece in ([item] if isinstance(item, int) else item)]
        deltas = [parser.push(piece) for piece in pieces]
        assert [CallBegin(0, "x", "get_weather"), CallArguments(0, "{")] in deltas
        fragments = [d.text for each in deltas for d in each if isinstance(d, CallArguments)]
        assert fragments == list(PARIS[1])


FRAGMENTS = (
    *('{"name": "', "get", "now", "nobody", '"', ', "arguments": ', ', "parameters": ', "{", "}", "[", "]", "}}", "\\"),
    *("<tool_call>", "</tool_call>", "<tool", "_call>", "<", ">", "<think>", "</think>", "[THINK]", "[/THINK]"),
    *('<tool_call>{"name": "get", "arguments": {"a": 1}}</tool_call>', '[{"name": "now", "arguments": {}}]'),
    *('{"name": "get", "parameters": {}}', ', {"name": "get", "arguments": {}}]', '[ARGS]{"b": "}"}'),
    *("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", " ", "\n", ",", ":", ";", "é", "text", '{"a": 1}', '"id": "abcdefghi"'),
)
CONTROL = (*MISTRAL.values(), *TAGS.values(), 99)
FORMS = [
    output_format(name, control, think)
    for name in (*TOOL_FORMATS, None)
    for control in (MISTRAL, TAGS, {})
    for think in (THINK, MISTRAL_THINK, None)
]
ITEMS = st.lists(
    st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from(FRAGMENTS), st.sampled_from(CONTROL)), max_size=30
)


@settings(max_examples=1000, deadline=None)
@given(form=st.sampled_from(FORMS), items=ITEMS, in_reasoning=st.booleans(), data=st.data())
def test_the_result_does_not_depend_on_the_pieces(
    form: OutputFormat, items: Items, in_reasoning: bool, data: st.DataObject
) -> None:
    whole: Items = []
    for item in items:
        if isinstance(item, str) and whole and isinstance(whole[-1], str):
            whole[-1] += item
        else:
            whole.append(item)
    split: Items = []
    for item in whole:
        if isinstance(item, str):
            at = data.draw(st.integers(0, len(item)))
            split += [item[:at], item[at:]]
        else:
            split.append(item)
    single = [piece for item in whole for piece in (item if isinstance(item, str) else [item])]
    expected = parse(form, whole, in_reasoning=in_reasoning)
    assert parse(form, split, in_reasoning=in_reasoning) == expected
    assert parse(form, single, in_reasoning=in_reasoning) == expected
    _check_nothing_is_lost(form, whole, expected)


def _check_nothing_is_lost(form: OutputFormat, items: Items, deltas: list[object]) -> None:
    """Without calls and reasoning, all text is there, but for whitespace that surrounded them."""
    if deltas and all(isinstance(d, ContentText) for d in deltas):
        reasons = form.reasoning is not None
        text = "".join(item for item in items if isinstance(item, str))
        (found,) = [d.text for d in deltas if isinstance(d, ContentText)]
        if reasons:
            assert "".join(found.split()) in "".join(text.split())
        else:
            assert found == text


@pytest.mark.parametrize("name", ["mistral-v3", "mistral-v11", "hermes", "llama3"])
def test_time_is_linear(name: str) -> None:
    """Hundreds of thousands of characters, in one piece and in many, of what keeps a parser busiest."""
    form = output_format(name, {} if name == "mistral-v11" else MISTRAL, THINK)
    deep = '{"name": "get", "arguments": ' + '{"a":' * 50_000
    calls = written(name, [NOW] * 5_000)
    opening: Items = ["[TOOL_CALLS]", "get", "[ARGS]"] if name == "mistral-v11" else [9, "[", "<tool_call>"]
    cases: list[Items] = [
        [" " * 250_000],
        ["<tool_cal" * 25_000],
        ["<" * 100_000],
        [*opening, deep],
        [*opening, '{"arguments": {"a": "' + "\\" * 200_000],
        [*opening, "[" * 100_000],
        list(" \n" * 50_000),
        list("<tool_" * 15_000),
        ["".join(item for item in calls if isinstance(item, str))],
        calls,
    ]
    with cpu_seconds_at_most(15.0):
        for items in cases:
            parse(form, items)


def test_json_arguments_come_back_as_they_were() -> None:
    arguments = json.dumps({"text": '</tool_call>[TOOL_CALLS]\n\t"{[', "n": [[], {}, None, -1.5e3]})
    for name in TOOL_FORMATS:
        assert parse(output_format(name), written(name, [("get", arguments)])) == called(("get", arguments))
