"""What the parser of a completion gives, in order."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContentText:
    """More of the response's text."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningText:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call begins."""

    index: int
    """0 for the completion's first call."""
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, as the model wrote them: JSON text, complete at the end of the call."""

    index: int
    text: str


type Delta = ContentText | ReasoningText | CallBegin | CallArguments
