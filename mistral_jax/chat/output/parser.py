"""A completion, as it is generated, taken apart into reasoning, text and tool calls."""

from __future__ import annotations

from collections.abc import Callable, Collection

from mistral_jax.chat.output.call_ids import new_call_id
from mistral_jax.chat.output.call_object import CallSink
from mistral_jax.chat.output.calls import CallReader, reader_of
from mistral_jax.chat.output.deltas import CallArguments, ContentText, Delta, ReasoningText
from mistral_jax.chat.output.formats import CallShape, Marker, OutputFormat
from mistral_jax.chat.output.scanning import WHITESPACE, MarkerScanner

_PIECE = 1024
"""Characters that are looked at together, so that the time of a long piece of text is linear in its length, too."""


class OutputParser:
    """Takes a completion in pieces and gives what is in it. Takes time in proportion to its length.

    The deltas, joined, do not depend on the pieces. Text that may begin a marker is held back until it is decided.

    - Markers that the vocabulary has as control tokens count only as such; the same letters in a text are text.
    - `<think>` in text counts only at the beginning. Inside reasoning nothing counts but its end, and control tokens
      that begin calls.
    - Whitespace around reasoning, between calls, and between text and a call belongs to the format.
    - What looks like a call and is none (it names no known tool, or has not the form) is text. A marker's letters are
      part of it, except for control tokens, which have no text. From the first character of a call's arguments on,
      everything up to the call's end is passed on as its arguments, well-formed or not.
    """

    def __init__(
        self,
        output_format: OutputFormat,
        *,
        tools: Collection[str] | None,
        in_reasoning: bool = False,
        new_id: Callable[[], str] | None = None,
    ) -> None:
        """Starts a completion.

        Args:
          output_format: What the model writes.
          tools: Names of the tools that it may call; None: calls are not looked for.
          in_reasoning: Whether the prompt has begun the reasoning.
          new_id: Makes the id of a call; None: a random one.
        """
        self._format = None if tools is None else output_format.tools
        self._reasoning = output_format.reasoning
        self._deltas: list[Delta] = []
        self._sink: CallSink | None = None
        if self._format is not None:
            short = self._format.short_ids
            new_id = new_id or (lambda: new_call_id(short=short))
            self._sink = CallSink(self._deltas.append, tools or (), self._format, new_id)
        self._reader: CallReader | None = None
        self._calls_before = 0
        """Calls when the reader began."""
        self._opening = _letters(self._format and self._format.opening)
        self._thought = _letters(self._reasoning and self._reasoning.start)
        self._in_content = MarkerScanner([text for text in (self._opening, self._thought) if text])
        thought_end = _letters(self._reasoning and self._reasoning.end)
        self._in_thought = MarkerScanner([thought_end] if thought_end else [])
        self._in_reasoning = in_reasoning and self._reasoning is not None
        self._has_content = False
        """Whether there was text other than whitespace, or what looks like a call."""
        self._skips_space = self._in_reasoning
        """Whether whitespace that comes now belongs to the format: at the beginning and after the end of reasoning."""
        self._may_reason = not self._in_reasoning
        """Whether a start of reasoning in letters would count."""
        self._space: list[str] = []
        """Whitespace at the end of the text so far, which may belong to the format."""

    @property
    def in_reasoning(self) -> bool:
        """Whether the next text is reasoning."""
        return self._in_reasoning

    @property
    def in_call(self) -> bool:
        """Whether the next text belongs to a call that has begun, or ends it."""
        return self._reader is not None and self.calls > self._calls_before

    @property
    def calls(self) -> int:
        """Number of tool calls so far."""
        return 0 if self._sink is None else self._sink.count

    def push(self, item: str | int) -> list[Delta]:
        """Takes a piece of text, or a control token; control tokens that mean nothing here are dropped."""
        if isinstance(item, int):
            self._control(item)
        else:
            for start in range(0, len(item), _PIECE):
                self._text(item[start : start + _PIECE])
        return self._taken()

    def finish(self) -> list[Delta]:
        """The end of the completion: gives what was held back."""
        self._end_calls()
        self._flush()
        if not (self.calls or self._in_reasoning) and self._space:
            self._deltas.append(ContentText("".join(self._space)))
        self._space.clear()
        return self._taken()

    def _taken(self) -> list[Delta]:
        """The new deltas, adjacent ones of a kind joined."""
        taken: list[Delta] = []
        for delta in self._deltas:
            match taken[-1:], delta:
                case [ContentText(before)], ContentText(text):
                    taken[-1] = ContentText(before + text)
                case [ReasoningText(before)], ReasoningText(text):
                    taken[-1] = ReasoningText(before + text)
                case [CallArguments(index, before)], CallArguments(_, text):
                    taken[-1] = CallArguments(index, before + text)
                case _:
                    taken.append(delta)
        self._deltas.clear()
        return taken

    def _text(self, text: str) -> None:
        while text:
            if self._reader is not None:
                text = self._reader.text(text)
                if self._reader.ended:
                    self._end_calls()
            elif self._in_reasoning:
                before, end, text = self._in_thought.push(text)
                self._add_reasoning(before)
                if end is not None:
                    self._end_reasoning()
            else:
                text = self._content(text)

    def _control(self, token: int) -> None:
        opening = self._format and self._format.opening
        reasoning = self._reasoning
        if opening is not None and token == opening.id:
            self._end_calls()
            self._flush()
            if self._in_reasoning:
                self._end_reasoning()
            self._begin_calls("")
        elif self._reader is not None:
            self._reader.marker(token)
            if self._reader.ended:
                self._end_calls()
        elif reasoning is not None and token == reasoning.start.id and not self._in_reasoning:
            self._flush()
            self._begin_reasoning()
        elif reasoning is not None and token == reasoning.end.id and self._in_reasoning:
            self._flush()
            self._end_reasoning()

    def _flush(self) -> None:
        """Text that is held back cannot become a marker any more."""
        if self._in_reasoning:
            self._add_reasoning(self._in_thought.flush())
        else:
            self._add_content(self._in_content.flush())

    # Text outside of reasoning and calls.

    def _content(self, text: str) -> str:
        """Takes text, up to a marker; returns the rest."""
        if not self._in_content.held:
            begin = text.lstrip(WHITESPACE)
            if not self._skips_space:
                self._hold_space(text[: len(text) - len(begin)])
            if not begin:
                return ""
            text = begin
            bare = self._format is not None and self._format.shape is CallShape.BARE
            if bare and not self._has_content and text[0] == "{":
                self._begin_calls("")
                return text
        before, marker, rest = self._in_content.push(text)
        self._add_content(before)
        if marker is not None and marker == self._opening:
            self._begin_calls(marker)
        elif marker is not None and not self._has_content and self._may_reason:
            self._begin_reasoning()
        elif marker is not None:
            self._add_content(marker)
        return rest

    def _add_content(self, text: str) -> None:
        if not text:
            return
        kept = text.rstrip(WHITESPACE)
        if kept:
            self._deltas.append(ContentText("".join(self._space) + kept))
            self._space.clear()
            self._has_content, self._skips_space = True, False
        self._hold_space(text[len(kept) :])

    def _hold_space(self, text: str) -> None:
        if text:
            self._space.append(text)

    # Reasoning.

    def _begin_reasoning(self) -> None:
        self._in_reasoning = self._skips_space = True
        self._may_reason = False
        self._space.clear()

    def _end_reasoning(self) -> None:
        self._in_reasoning, self._skips_space = False, True
        self._space.clear()

    def _add_reasoning(self, text: str) -> None:
        if self._skips_space:
            text = text.lstrip(WHITESPACE)
        kept = text.rstrip(WHITESPACE)
        if kept:
            self._deltas.append(ReasoningText("".join(self._space) + kept))
            self._space.clear()
            self._skips_space = False
        self._hold_space(text[len(kept) :])

    # Calls.

    def _begin_calls(self, opening: str) -> None:
        assert self._sink is not None
        assert self._format is not None
        self._has_content = True
        self._calls_before = self._sink.count
        self._sink.pending[:] = [opening]
        self._reader = reader_of(self._format, self._sink)

    def _end_calls(self) -> None:
        """The reader's calls have ended, or have to: what was no call is text."""
        if self._reader is None or self._sink is None:
            return
        if not self._reader.ended:
            self._reader.finish()
        self._reader = None
        rejected = "".join(self._sink.pending)
        self._sink.pending.clear()
        if self._sink.count > self._calls_before:
            self._space.clear()
        self._add_content(rejected)


def _letters(marker: Marker | None) -> str:
    """A marker that is written in letters; "" for none, and for control tokens."""
    return "" if marker is None or marker.id is not None else marker.text
