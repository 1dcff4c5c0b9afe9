"""One completion as a sequence of blocks: runs of reasoning and of text, and tool calls, in the order in which the
model wrote them. APIs other than that of chat completions frame these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from msgspec import UnsetType

from mistral_jax.chat.output.deltas import CallArguments, CallBegin, ContentText, Delta, ReasoningText
from serving.api.responses.framing import CallFacts, Choice
from serving.api.responses.parsed.choice import Ending, ParsedChoice
from serving.api.responses.timings import TimingsReport
from serving.api.responses.xlora_scalings import ScalingsReport
from serving.api.schemas import Timings, Usage, XLoRAScalings
from serving.api.schemas.usage import CompletionTokensDetails
from serving.api.service.asked import ToolUse
from serving.engine.messages import Event, TokenLogprob


@dataclass(slots=True, eq=False)
class Block:
    """One block so far."""

    index: int
    kind: Literal["reasoning", "text", "call"]
    parts: list[str] = field(default_factory=list[str])
    """Of its text, or of a call's arguments."""
    call_id: str = ""
    name: str = ""
    """Of the function, for a call."""
    closed: bool = False
    cut: bool = False
    """Whether the completion ended inside it."""

    @property
    def text(self) -> str:
        """Its text, or the arguments of a call."""
        return "".join(self.parts)


@dataclass(frozen=True, slots=True)
class Opened:
    """A block begins."""

    block: Block


@dataclass(frozen=True, slots=True)
class Added:
    """More of a block."""

    block: Block
    text: str
    logprobs: Sequence[TokenLogprob] = ()
    """Of its tokens, for text."""


@dataclass(frozen=True, slots=True)
class Closed:
    """A block ends."""

    block: Block


type Step = Opened | Added | Closed


class Blocks:
    """The blocks of a call with one completion, and what its response says besides them.

    Args:
      tools: what the model may write besides text.
    """

    def __init__(self, facts: CallFacts, tools: ToolUse) -> None:
        (prompt,) = facts.prompts
        reported = facts.reported
        self.all: list[Block] = []
        self._choice = Choice(scalings=None if reported is None else ScalingsReport(reported))
        self._parsed = ParsedChoice(tools, in_reasoning=prompt.in_reasoning)
        self._prompt_tokens = len(prompt.tokens)
        self._marks_reasoning = tools.output.reasoning is not None
        self._timings = TimingsReport([self._prompt_tokens], facts.times)

    @property
    def ending(self) -> Ending | None:
        """Why the completion ended; None: it has not."""
        return self._parsed.finish_reason

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended it."""
        return self._parsed.stop_string

    def take(self, event: Event) -> list[Step]:
        """Keep an event. Returns what it adds."""
        self._timings.take(0, event)
        self._choice.take(event)
        deltas, logprobs = self._parsed.take(event)
        steps = [step for delta in deltas for step in self._steps(delta)]
        for place in reversed(range(len(steps))):
            step = steps[place]
            if logprobs and isinstance(step, Added) and step.block.kind == "text":
                steps[place] = Added(step.block, step.text, logprobs)
                break
        if self.ending is not None:
            steps += self._end()
        return steps

    def _steps(self, delta: Delta) -> list[Step]:
        match delta:
            case ContentText(text):
                return self._add("text", text)
            case ReasoningText(text):
                return self._add("reasoning", text)
            case CallBegin(_, call_id, name):
                return [*self._close(), self._open("call", call_id, name)]
            case CallArguments(_, text):
                return self._add("call", text)

    def _add(self, kind: Literal["reasoning", "text", "call"], text: str) -> list[Step]:
        steps: list[Step] = []
        if not self.all or self.all[-1].closed or self.all[-1].kind != kind:
            steps = [*self._close(), self._open(kind)]
        self.all[-1].parts.append(text)
        return [*steps, Added(self.all[-1], text)]

    def _open(self, kind: Literal["reasoning", "text", "call"], call_id: str = "", name: str = "") -> Step:
        self.all.append(Block(len(self.all), kind, call_id=call_id, name=name))
        return Opened(self.all[-1])

    def _close(self) -> list[Step]:
        if not self.all or self.all[-1].closed:
            return []
        self.all[-1].closed = True
        return [Closed(self.all[-1])]

    def _end(self) -> list[Step]:
        """The completion has ended. One that is neither text nor calls, and not cut off, has an empty text."""
        steps: list[Step] = []
        if self.ending == "stop" and all(block.kind == "reasoning" for block in self.all):
            steps = [*self._close(), self._open("text")]
        if self.all:
            last = self.all[-1]
            last.cut = self.ending == "length" or (last.kind == "call" and self.ending == "stop")
        return [*steps, *self._close()]

    def usage(self) -> Usage:
        """Tokens so far."""
        completion = self._choice.completion_tokens
        usage = Usage.of(self._prompt_tokens, completion, cached=self._choice.cached_tokens)
        if self._marks_reasoning:
            tokens = self._parsed.reasoning_tokens
            usage.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=tokens)
        return usage

    def timings(self) -> Timings | UnsetType:
        """The times of the call so far."""
        return self._timings.whole()

    def xlora(self) -> XLoRAScalings | UnsetType:
        """The adapter weights of the completion, if the call asks for them."""
        return self._choice.xlora()
