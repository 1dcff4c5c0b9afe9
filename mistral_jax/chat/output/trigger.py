"""Noticing that a model begins a call, token by token, so that what follows can be constrained."""

from __future__ import annotations

from dataclasses import dataclass

from mistral_jax.chat.output.formats import Marker, ReasoningFormat
from mistral_jax.chat.output.scanning import WHITESPACE, MarkerScanner


@dataclass(frozen=True, kw_only=True, slots=True)
class Trigger:
    """What begins a call."""

    token_ids: tuple[int, ...] = ()
    """Control tokens; they count everywhere, in reasoning too."""
    texts: tuple[str, ...] = ()
    """Texts; they count anywhere in the response, but not in reasoning."""
    first_texts: tuple[str, ...] = ()
    """Texts with which the response begins, whitespace before them aside. They are part of the call themselves."""
    reasoning: ReasoningFormat | None = None
    """How reasoning is marked."""
    in_reasoning: bool = False
    """Whether the prompt has begun the reasoning."""


class TriggerWatch:
    """Watches one completion for a trigger. It sees what `OutputParser` sees, without delay."""

    def __init__(self, trigger: Trigger) -> None:
        self._trigger = trigger
        self._reasoning = trigger.reasoning
        # Bytes as text of the same length: a token may end within a character.
        self._first = tuple(map(_as_text, trigger.first_texts))
        self._start = _letters(self._reasoning and self._reasoning.start)
        end = _letters(self._reasoning and self._reasoning.end)
        texts = [_as_text(text) for text in trigger.texts]
        self._in_content = MarkerScanner([text for text in (*texts, self._start) if text])
        self._in_thought = MarkerScanner([end] if end else [])
        self._in_reasoning = trigger.in_reasoning and self._reasoning is not None
        self._may_reason = not self._in_reasoning
        self._begun = False
        """Whether the response has begun."""
        self._beginning = ""
        """The beginning of the response, as long as it may be that of a first text."""

    def push(self, token: int, data: bytes) -> bytes | None:
        """Takes the next token.

        Args:
          token: Its id.
          data: Its bytes; b"" for control tokens.

        Returns:
          None until a call begins. Then the bytes after the trigger that are in the token already, or, with a first
          text, all of the response so far: what the grammar after the trigger has to take before the next token.
        """
        if token in self._trigger.token_ids:
            return b""
        if self._reasoning is not None and not data:
            if token == self._reasoning.start.id and not self._in_reasoning:
                self._in_reasoning = True
            elif token == self._reasoning.end.id and self._in_reasoning:
                self._in_reasoning = False
        text = data.decode("latin-1")
        while text:
            if self._in_reasoning:
                _, end, text = self._in_thought.push(text)
                self._in_reasoning = end is None
                continue
            if not self._begun and self._first and not self._in_content.held:
                self._beginning = (self._beginning + text).lstrip(WHITESPACE)
                if self._beginning.startswith(self._first):
                    return self._beginning.encode("latin-1")
                if any(first.startswith(self._beginning) for first in self._first):
                    return None
                text, self._beginning = self._beginning, ""
            before, marker, text = self._in_content.push(text)
            self._begun = self._begun or bool(before.strip(WHITESPACE))
            if marker is None:
                continue
            if marker != self._start:
                self._begun = True
                return text.encode("latin-1")
            if self._may_reason and not self._begun:
                self._in_reasoning, self._may_reason = True, False
            else:
                self._begun = True
        return None


def _as_text(text: str) -> str:
    return text.encode().decode("latin-1")


def _letters(marker: Marker | None) -> str:
    return "" if marker is None or marker.id is not None else _as_text(marker.text)
