"""Completions as models of each format write them, and what is in them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Sequence
from typing import Any

from mistral_jax.chat.output.deltas import CallArguments, CallBegin, ContentText, Delta, ReasoningText
from mistral_jax.chat.output.formats import OutputFormat, reasoning_format, tool_format
from mistral_jax.chat.output.parser import OutputParser

MISTRAL = {"[TOOL_CALLS]": 9, "[ARGS]": 20, "[CALL_ID]": 21, "[THINK]": 22, "[/THINK]": 23}
"""Control tokens of a vocabulary of Mistral's."""
TAGS = {"<tool_call>": 31, "</tool_call>": 32, "<think>": 33, "</think>": 34, "<|python_tag|>": 35}
"""Control tokens of a vocabulary that has those of other formats."""
TOOLS = ("get_weather", "get", "now")

type Items = list[str | int]
type Call = tuple[str, str]
"""A tool's name and its arguments as JSON text."""


def output_format(
    name: str | None, control_tokens: dict[str, int] = MISTRAL, reasoning: tuple[str, str] | None = None
) -> OutputFormat:
    return OutputFormat(
        tools=None if name is None else tool_format(name, control_tokens),
        reasoning=None if reasoning is None else reasoning_format(*reasoning, control_tokens),
    )


def parse(
    form: OutputFormat, items: Iterable[str | int], *, tools: Sequence[str] | None = TOOLS, in_reasoning: bool = False
) -> list[Delta]:
    """All deltas, with ids id0, id1 and so on, adjacent ones of a kind joined."""
    ids = itertools.count()
    parser = OutputParser(form, tools=tools, in_reasoning=in_reasoning, new_id=lambda: f"id{next(ids)}")
    deltas = [delta for item in items for delta in parser.push(item)]
    return joined([*deltas, *parser.finish()])


def joined(deltas: Iterable[Delta]) -> list[Delta]:
    out: list[Delta] = []
    for delta in deltas:
        if isinstance(delta, CallBegin):
            out.append(delta)
        elif out and type(out[-1]) is type(delta):
            last: Any = out.pop()
            out.append(
                CallArguments(last.index, last.text + delta.text)
                if isinstance(delta, CallArguments)
                else type(delta)(last.text + delta.text)
            )
        else:
            out.append(delta)
    return out


def content(text: str) -> ContentText:
    return ContentText(text)


def reasoning(text: str) -> ReasoningText:
    return ReasoningText(text)


def called(*calls: Call) -> list[Delta]:
    """The deltas of these calls."""
    out: list[Delta] = []
    for index, (name, arguments) in enumerate(calls):
        out += [CallBegin(index, f"id{index}", name), CallArguments(index, arguments)]
    return out


def written(name: str, calls: Sequence[Call], control_tokens: dict[str, int] = MISTRAL) -> Items:
    """These calls as a model of the format writes them."""

    def mark(text: str) -> Items:
        return [control_tokens.get(text, text)]

    out: Items = []
    if name in ("mistral-v2", "mistral-v3", "mistral-v7"):
        ids = ("", ', "id": "abcdefghi"', ', "id": "123456789"')
        extra = ids if name != "mistral-v2" else ("", "", "")
        listed = ", ".join(f'{{"name": "{n}", "arguments": {a}{extra[i % 3]}}}' for i, (n, a) in enumerate(calls))
        return [*mark("[TOOL_CALLS]"), f"[{listed}]"]
    for i, (called_name, arguments) in enumerate(calls):
        if name == "hermes":
            json_text = f'\n{{"name": {json.dumps(called_name)}, "arguments": {arguments}}}\n'
            out += [*(["\n"] if i else []), *mark("<tool_call>"), json_text, *mark("</tool_call>")]
        elif name == "llama3":
            out += [*(["; "] if i else []), f'{{"name": "{called_name}", "parameters": {arguments}}}']
        else:
            out += [*mark("[TOOL_CALLS]"), called_name, *mark("[ARGS]"), arguments]
    return out
