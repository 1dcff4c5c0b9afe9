"""The formats in which models write tool calls and reasoning, as data.

| name | a call | several calls |
|---|---|---|
| mistral-v2 | `[TOOL_CALLS]` `[{"name": …, "arguments": {…}}]` | in the same list |
| mistral-v3, mistral-v7 | ″ with `"id"` | ″ |
| mistral-v11 | `[TOOL_CALLS]` name `[CALL_ID]` id `[ARGS]` `{…}` | one after another |
| mistral-v13 | `[TOOL_CALLS]` name `[ARGS]` `{…}` | ″ |
| hermes | `<tool_call>` `{"name": …, "arguments": {…}}` `</tool_call>` | ″ |
| llama3 | `{"name": …, "parameters": {…}}`, alone or after `<|python_tag|>` | one only |

Reasoning stands between `[THINK]` and `[/THINK]`, or between `<think>` and `</think>`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Marker:
    """A text that begins or ends something, such as `[TOOL_CALLS]`."""

    text: str
    id: int | None = None
    """Its id where the vocabulary has it as a control token: then the same letters in a text are only text. None where
    models write it letter by letter."""

    @classmethod
    def of(cls, text: str, control_tokens: Mapping[str, int]) -> Marker:
        """The marker in a vocabulary with these control tokens."""
        return cls(text, control_tokens.get(text))


class CallShape(enum.Enum):
    """How calls are put together."""

    ARRAY = enum.auto()
    """An opening, then a JSON list of call objects."""
    NAMED = enum.auto()
    """For each call: an opening, the name, perhaps an id, the arguments."""
    TAGGED = enum.auto()
    """For each call: an opening, a call object, a closing."""
    BARE = enum.auto()
    """A call object that is the whole completion, perhaps after an opening."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolFormat:
    """One format of tool calls, in one vocabulary."""

    name: str
    shape: CallShape
    opening: Marker | None
    closing: Marker | None = None
    before_id: Marker | None = None
    before_arguments: Marker | None = None
    arguments_key: Literal["arguments", "parameters"] = "arguments"
    """Name of the arguments in a call object."""
    writes_ids: bool = False
    """Whether the model may write the id of a call."""
    short_ids: bool = False
    """Whether ids of calls are nine letters and digits: the models, and their templates, know no others."""
    several: bool = True
    """Whether a completion may have more than one call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ReasoningFormat:
    """How a model separates its reasoning from its response."""

    start: Marker
    end: Marker


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputFormat:
    """What there may be in a completion besides text."""

    tools: ToolFormat | None = None
    reasoning: ReasoningFormat | None = None

    @property
    def token_ids(self) -> frozenset[int]:
        """The control tokens that mean something: those that a parser has to see."""
        markers: list[Marker | None] = []
        if self.tools is not None:
            tools = self.tools
            markers += [tools.opening, tools.closing, tools.before_id, tools.before_arguments]
        if self.reasoning is not None:
            markers += [self.reasoning.start, self.reasoning.end]
        return frozenset(marker.id for marker in markers if marker is not None and marker.id is not None)


type _Make = Callable[[str, Callable[[str], Marker]], ToolFormat]


def _array(name: str, marker: Callable[[str], Marker]) -> ToolFormat:
    with_ids = name != "mistral-v2"
    opening = marker("[TOOL_CALLS]")
    return ToolFormat(name=name, shape=CallShape.ARRAY, opening=opening, writes_ids=with_ids, short_ids=with_ids)


def _named(name: str, marker: Callable[[str], Marker]) -> ToolFormat:
    with_ids = name == "mistral-v11"
    return ToolFormat(
        name=name,
        shape=CallShape.NAMED,
        opening=marker("[TOOL_CALLS]"),
        before_id=marker("[CALL_ID]"),
        before_arguments=marker("[ARGS]"),
        writes_ids=with_ids,
        short_ids=True,
    )


def _tagged(name: str, marker: Callable[[str], Marker]) -> ToolFormat:
    return ToolFormat(name=name, shape=CallShape.TAGGED, opening=marker("<tool_call>"), closing=marker("</tool_call>"))


def _bare(name: str, marker: Callable[[str], Marker]) -> ToolFormat:
    return ToolFormat(
        name=name,
        shape=CallShape.BARE,
        opening=marker("<|python_tag|>"),
        arguments_key="parameters",
        several=False,
    )


_FORMATS: Mapping[str, _Make] = {
    "mistral-v2": _array,
    "mistral-v3": _array,
    "mistral-v7": _array,
    "mistral-v11": _named,
    "mistral-v13": _named,
    "hermes": _tagged,
    "llama3": _bare,
}

TOOL_FORMATS = tuple(_FORMATS)
"""The names of all formats of tool calls."""


def tool_format(name: str, control_tokens: Mapping[str, int]) -> ToolFormat:
    """A format by name, in a vocabulary with these control tokens.

    Raises:
      KeyError: there is no such format.
    """
    return _FORMATS[name](name, lambda text: Marker.of(text, control_tokens))


def reasoning_format(start: str, end: str, control_tokens: Mapping[str, int]) -> ReasoningFormat:
    """The format with these markers, in a vocabulary with these control tokens."""
    return ReasoningFormat(start=Marker.of(start, control_tokens), end=Marker.of(end, control_tokens))
