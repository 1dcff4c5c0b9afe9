"""One completion so far, taken apart into reasoning, text and tool calls: what all APIs frame in their own ways."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from mistral_jax.chat.output.deltas import CallArguments, CallBegin, ContentText, Delta, ReasoningText
from mistral_jax.chat.output.parser import OutputParser
from serving.api.service.asked import ToolUse
from serving.engine.messages import Event, TokenLogprob

Ending = Literal["stop", "length", "tool_calls"]
"""Why a completion ended; "tool_calls": with whole calls."""


@dataclass(slots=True)
class ParsedCall:
    """One tool call so far."""

    id: str
    name: str
    arguments: list[str] = field(default_factory=list[str])


class ParsedChoice:
    """One choice so far, taken apart.

    Args:
      tools: what the model may write besides text.
      in_reasoning: whether the prompt has begun the reasoning.
    """

    def __init__(self, tools: ToolUse, *, in_reasoning: bool) -> None:
        self._parser = OutputParser(tools.output, tools=tools.names, in_reasoning=in_reasoning)
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.calls: list[ParsedCall] = []
        self.logprobs: list[TokenLogprob] = []
        """Of the tokens of the content."""
        self._undecided: list[TokenLogprob] = []
        """Of tokens whose text is held back, because it may not be content."""
        self.reasoning_tokens = 0
        self.finish_reason: Ending | None = None
        self.stop_string: str | None = None
        """The stop string that ended it."""
        self._tokens = self._held_tokens = 0

    def take(self, event: Event) -> tuple[list[Delta], list[TokenLogprob]]:
        """Keeps an event. Returns what it adds, and log-probabilities of its content."""
        parser = self._parser
        reasoned, called = parser.in_reasoning, parser.in_call
        deltas: list[Delta] = []
        for item in event.items or ((event.text,) if event.text else ()):
            deltas += parser.push(item)
        if event.finish_reason is not None:
            deltas += parser.finish()
        reasoned = reasoned or parser.in_reasoning or any(isinstance(delta, ReasoningText) for delta in deltas)
        self._count(event, deltas, reasoned=reasoned)
        for delta in deltas:
            self._keep(delta)
        if event.finish_reason in ("stop", "length"):
            self._finish(event)
        return deltas, self._decide(event.logprobs, deltas, other=reasoned or called)

    def _count(self, event: Event, deltas: list[Delta], *, reasoned: bool) -> None:
        """Counts the tokens of the reasoning. Those whose text is held back may be its first."""
        new = max(event.completion_tokens - self._tokens, 0)
        self._tokens += new
        self._held_tokens += new
        if reasoned:
            self.reasoning_tokens += self._held_tokens
        if reasoned or deltas:
            self._held_tokens = 0

    def _keep(self, delta: Delta) -> None:
        match delta:
            case ContentText(text):
                self.content.append(text)
            case ReasoningText(text):
                self.reasoning.append(text)
            case CallBegin(_, call_id, name):
                self.calls.append(ParsedCall(call_id, name))
            case CallArguments(index, text):
                self.calls[index].arguments.append(text)

    def _finish(self, event: Event) -> None:
        self.stop_string = event.stop_reason if isinstance(event.stop_reason, str) else None
        # A stop string may have ended the completion inside a call.
        whole = event.finish_reason == "stop" and event.stop_reason is None
        self.finish_reason = "tool_calls" if self.calls and whole else "stop"
        if event.finish_reason == "length":
            self.finish_reason = "length"

    def _decide(self, logprobs: Sequence[TokenLogprob], deltas: list[Delta], *, other: bool) -> list[TokenLogprob]:
        """The log-probabilities that are known now to be those of content."""
        if not other:
            self._undecided += logprobs
        decided: list[TokenLogprob] = []
        if any(isinstance(delta, ContentText) for delta in deltas):
            decided, self._undecided = self._undecided, []
            self.logprobs += decided
        elif deltas or other:
            self._undecided = []
        return decided
