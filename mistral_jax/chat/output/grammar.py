"""Grammars that hold a model to valid tool calls, in llguidance's Lark.

They name control tokens by their ids (`<[9]>`), and refer to the arguments of each tool by a name (`@arguments_0`),
whose JSON schema comes beside them: it is the user's, and checked as such. What surrounds the arguments is written
exactly as the models' own templates write it, so that most of its tokens leave no choice.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mistral_jax.chat.output.formats import CallShape, Marker, OutputFormat, ReasoningFormat, ToolFormat
from mistral_jax.chat.output.trigger import Trigger

TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
"""The names that tools may have."""

_NO_PARAMETERS: Mapping[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolSpec:
    """A tool that the model may call."""

    name: str
    parameters: Mapping[str, Any] | None = None
    """JSON schema of its arguments; None: it takes none."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallGrammar:
    """The grammars of calls to some tools."""

    whole: str
    """Of a completion that is a call, or several; reasoning may come before."""
    trigger: Trigger
    """What begins calls in a completion that is free to have none."""
    after_trigger: str
    """Of the rest of a completion after that."""
    arguments: tuple[tuple[str, str], ...]
    """What both refer to: names, and JSON schemas as text, in the order of the tools."""


def tool_call_grammar(
    output_format: OutputFormat,
    tools: Sequence[ToolSpec],
    *,
    parallel: bool = True,
    in_reasoning: bool = False,
    leading_space: bool = False,
) -> CallGrammar:
    """The grammars of calls to these tools, and to no others.

    Args:
      output_format: What the model writes; it has a format of tool calls.
      tools: At least one; with different names.
      parallel: Whether there may be several calls.
      in_reasoning: Whether the prompt has begun the reasoning.
      leading_space: Whether the model may write a space after a control token that is not part of the text
        (`Tokenizer.strips_leading_space`).

    Raises:
      ValueError: a name is not one that tools may have, or parameters are not those of an object.
    """
    form = output_format.tools
    if form is None or not tools:
        raise ValueError("A grammar of tool calls needs a format of tool calls, and a tool.")
    rules = [
        f"call: {' | '.join(f'call_{i}' for i in range(len(tools)))}",
        *(_call(form, i, tool.name, leading_space) for i, tool in enumerate(tools)),
        *_HELPERS,
    ]
    several = parallel and form.several
    space = "SPACE? " if leading_space else ""
    opening = "" if form.opening is None or form.shape is CallShape.BARE else f"{_terminal(form.opening)} "
    if opening.startswith('"') or form.shape is CallShape.BARE:
        opening = space + opening  # a text that begins the completion
    match form.shape:
        case CallShape.ARRAY:
            calls = '"[" call (", " call)* "]"' if several else '"[" call "]"'
            calls = f"{space}{calls}"
        case CallShape.NAMED | CallShape.TAGGED:
            again = f"{opening}call" if form.shape is CallShape.NAMED else f"WS? {opening}call"
            calls = f"call ({again})*" if several else "call"
        case CallShape.BARE:
            calls = "call"
    thought, thought_rules = reasoning_before(output_format.reasoning, in_reasoning=in_reasoning)
    bare = form.shape is CallShape.BARE
    begin = "WS? " if bare else ""
    return CallGrammar(
        whole="\n".join([f"start: {thought}{opening}{calls}", *rules, *thought_rules, ""]),
        trigger=_trigger(form, output_format.reasoning, in_reasoning=in_reasoning),
        after_trigger="\n".join([f"start: {begin}{calls}", *rules, ""]),
        arguments=tuple((f"arguments_{i}", _schema(tool)) for i, tool in enumerate(tools)),
    )


_HELPERS = ('SPACE: " "', r"WS: /[ \t\r\n]{1,8}/", "ID: /[a-zA-Z0-9]{9}/")


def _call(form: ToolFormat, index: int, name: str, leading_space: bool) -> str:
    """The rule of calls to one tool, without what begins them."""
    if TOOL_NAME.fullmatch(name) is None:
        raise ValueError(f"{name[:80]!r} is no name of a tool: expected 1 to 64 letters, digits, underscores, dashes.")
    space = "SPACE? " if leading_space else ""
    arguments = f"@arguments_{index}"
    if form.shape is CallShape.NAMED:
        assert form.before_arguments is not None
        call_id = ""
        if form.writes_ids and form.before_id is not None:
            call_id = f"({_terminal(form.before_id)} {space}ID)? "
        return f'call_{index}: {space}"{name}" {call_id}{_terminal(form.before_arguments)} {space}{arguments}'
    head = json.dumps(f'{{"name": "{name}", "{form.arguments_key}": ')
    call_id = r'(", \"id\": \"" ID "\"")? ' if form.writes_ids else ""
    called = f'{head} {arguments} {call_id}"}}"'
    if form.shape is CallShape.TAGGED:
        assert form.closing is not None
        called = f"WS? {called} WS? {_terminal(form.closing)}"
    return f"call_{index}: {called}"


def _schema(tool: ToolSpec) -> str:
    schema = dict(_NO_PARAMETERS if tool.parameters is None else tool.parameters)
    if schema.setdefault("type", "object") != "object":
        raise ValueError(f"The parameters of {tool.name} have another type than object.")
    return json.dumps(schema)


def _terminal(marker: Marker) -> str:
    return json.dumps(marker.text) if marker.id is None else f"<[{marker.id}]>"


def reasoning_before(reasoning: ReasoningFormat | None, *, in_reasoning: bool) -> tuple[str, list[str]]:
    """What may come before calls, or before a response of another form: the beginning of a rule, and the rules that it
    refers to.

    Args:
      in_reasoning: Whether the prompt has begun the reasoning.
    """
    if reasoning is None:
        return "", []
    rules = [r"TEXT: /(.|\n)*/"]
    if reasoning.end.id is None:
        rules.append(f"thought[lazy]: TEXT {_terminal(reasoning.end)}")
        rest = "thought"
    else:
        rest = f"TEXT {_terminal(reasoning.end)}"
    if in_reasoning:
        return f"{rest} WS? ", rules
    return "reasoning? ", [*rules, f"reasoning: {_terminal(reasoning.start)} {rest} WS?"]


def _trigger(form: ToolFormat, reasoning: ReasoningFormat | None, *, in_reasoning: bool) -> Trigger:
    opening = form.opening
    by_id = opening is not None and opening.id is not None
    texts = () if opening is None or by_id else (opening.text,)
    return Trigger(
        token_ids=(opening.id,) if opening is not None and opening.id is not None else (),
        texts=() if form.shape is CallShape.BARE else texts,
        first_texts=('{"name": "',) if form.shape is CallShape.BARE else (),
        reasoning=reasoning,
        in_reasoning=in_reasoning,
    )
