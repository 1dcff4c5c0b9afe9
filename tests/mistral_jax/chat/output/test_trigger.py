"""Noticing calls token by token: where the parser finds one, and what the grammar has to take first."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.chat.output.deltas import CallBegin
from mistral_jax.chat.output.formats import TOOL_FORMATS
from mistral_jax.chat.output.grammar import ToolSpec, tool_call_grammar
from mistral_jax.chat.output.trigger import TriggerWatch
from tests.mistral_jax.chat.output.completions import MISTRAL, TAGS, Items, output_format, parse, written

THINK = ("<think>", "</think>")
TOOLS = [ToolSpec("get"), ToolSpec("now")]


def watch(
    name: str,
    items: Items,
    control: dict[str, int] = MISTRAL,
    *,
    reasoning: tuple[str, str] | None = None,
    in_reasoning: bool = False,
) -> tuple[int, bytes] | None:
    """The number of items taken until a call begins, and what is left then; None: there is none."""
    form = output_format(name, control, reasoning)
    watched = TriggerWatch(tool_call_grammar(form, TOOLS, in_reasoning=in_reasoning).trigger)
    for count, item in enumerate(items, 1):
        token, data = (item, b"") if isinstance(item, int) else (1000, item.encode())
        rest = watched.push(token, data)
        if rest is not None:
            return count, rest
    return None


def test_control_tokens() -> None:
    assert watch("mistral-v13", ["Well, ", 9, "now"]) == (2, b"")
    assert watch("mistral-v3", ["[TOOL_CALLS]"]) is None
    assert watch("hermes", ["x", 31, "y"], TAGS) == (2, b"")
    assert watch("mistral-v13", [22, "Hm", 9], reasoning=("[THINK]", "[/THINK]")) == (3, b"")


def test_letters() -> None:
    assert watch("hermes", ["é <tool", "_call>\n", "{"]) == (2, b"\n")
    assert watch("hermes", list("<tool_call>")) == (11, b"")
    assert watch("hermes", ["<tool_calls>"]) is None


def test_letters_in_reasoning_do_not_count() -> None:
    thought: Items = ["<think>", "<tool_call>", "{}", "</th", "ink>\n\n"]
    assert watch("hermes", [*thought, "<tool_call>{"], reasoning=THINK) == (6, b"{")
    assert watch("hermes", [*thought[1:], "<tool_call>{"], reasoning=THINK, in_reasoning=True) == (5, b"{")
    assert watch("hermes", ["x", *thought], reasoning=THINK) == (3, b"")


def test_json_that_begins_the_response() -> None:
    assert watch("llama3", ["\n", ' {"na', 'me": "ge', "t"]) == (3, b'{"name": "ge')
    assert watch("llama3", ['{"answer": ', '{"name": "']) is None
    assert watch("llama3", ["x", '{"name": "']) is None
    assert watch("llama3", ["<think>x</think>", '\n{"name": "x'], reasoning=THINK) == (2, b'{"name": "x')
    assert watch("llama3", [35, "{"], TAGS) == (1, b"")


def test_tokens_that_end_within_a_character() -> None:
    form = output_format("hermes")
    watched = TriggerWatch(tool_call_grammar(form, TOOLS).trigger)
    data = "aé😀<tool_call>{é".encode()
    pushed = [watched.push(1000, data[i : i + 4]) for i in range(0, 20, 4)]
    assert pushed == [*[None] * 4, b"{\xc3"]


FRAGMENTS = (
    "<tool",
    "_call>",
    "<tool_call>",
    "<think>",
    "</think>",
    "x",
    " ",
    '{"name": "get"',
    '{"name": "',
    "{",
    "é",
)


@settings(max_examples=500, deadline=None)
@given(
    name=st.sampled_from(TOOL_FORMATS),
    control=st.sampled_from((MISTRAL, TAGS, {})),
    reasoning=st.sampled_from((THINK, ("[THINK]", "[/THINK]"), None)),
    in_reasoning=st.booleans(),
    before=st.lists(st.one_of(st.sampled_from(FRAGMENTS), st.sampled_from([22, 23, 33, 34, 99])), max_size=8),
)
def test_it_fires_where_the_parser_finds_a_call(
    name: str,
    control: dict[str, int],
    reasoning: tuple[str, str] | None,
    in_reasoning: bool,
    before: Items,
) -> None:
    calls = written(name, [("get", "{}")], control)
    items: Items = [*before, *calls]
    deltas = parse(output_format(name, control, reasoning), items, in_reasoning=in_reasoning)
    found = watch(name, items, control, reasoning=reasoning, in_reasoning=in_reasoning)
    if any(isinstance(delta, CallBegin) for delta in deltas):
        assert found is not None
    if found is None:
        return
    taken, rest = found
    singles = list(itertools.chain.from_iterable([i] if isinstance(i, int) else list(i) for i in items))
    one_by_one = watch(name, singles, control, reasoning=reasoning, in_reasoning=in_reasoning)
    assert one_by_one is not None
    if name != "llama3":
        left = [item for item in items[taken:] if isinstance(item, str)]
        texts = [item for item in singles[one_by_one[0] :] if isinstance(item, str)]
        assert rest.decode() + "".join(left) == "".join(texts)


@pytest.mark.parametrize("name", TOOL_FORMATS)
def test_triggers_of_each_format(name: str) -> None:
    by_id = tool_call_grammar(output_format(name, MISTRAL | TAGS), TOOLS).trigger
    by_text = tool_call_grammar(output_format(name, {}), TOOLS).trigger
    assert len(by_id.token_ids) == 1
    assert by_id.texts == by_text.token_ids == ()
    assert by_text.texts == (() if name == "llama3" else ("<tool_call>",) if name == "hermes" else ("[TOOL_CALLS]",))
