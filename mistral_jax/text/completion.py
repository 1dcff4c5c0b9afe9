"""From sampled tokens to the text of one completion: detokenising, stop strings, the end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Literal

from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Sampled
from mistral_jax.text.detokenizer import IncrementalDetokenizer
from mistral_jax.text.stop_strings import StopMatcher
from mistral_jax.tokenizer.base import Tokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Piece:
    """The result of one more token. The joined `text` of all pieces is the completion."""

    text: str = ""
    """May be empty: an incomplete character, or text that may begin a stop string, is held back for a later piece."""
    items: tuple[str | int, ...] = ()
    """The text, and the ids of the control tokens that are reported, in order; empty if none are to be reported."""
    tokens: tuple[Sampled, ...] = ()
    """The tokens whose text this piece completes, without end-of-sequence tokens and those of a stop string."""
    finish_reason: Literal["stop", "length", "error"] | None = None
    """Set on the last piece. "error": there is no token; see `mistral_jax.runtime.sampling.sample`."""
    stop_reason: int | str | None = None
    """The stop string, or the id of `stop_token_ids`, that ended the completion; None for anything else."""
    end: Sampled | None = None
    """The token without text that ended the completion, if one did."""


class CompletionStream:
    """Turns the tokens of one completion into pieces of text; no byte is lost or added.

    Args:
      params: what ends a completion (`stop`, `stop_token_ids`, `ignore_eos`, `min_tokens`) and what its text shows
        (`include_stop_str_in_output`, `skip_special_tokens`) is used here.
      eos_ids: tokens that end generation.
      max_tokens: tokens after which the completion ends with "length".
      at_start: whether the completion begins after a control token; False where it continues a raw text.
      reported: control tokens to report in the pieces' items. An incomplete character ends before them: it becomes
        U+FFFD, as at the end of a text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        eos_ids: Collection[int],
        max_tokens: int,
        at_start: bool = True,
        reported: Collection[int] = (),
    ) -> None:
        self._eos_ids = frozenset() if params.ignore_eos else frozenset(eos_ids)
        self._stop_ids = frozenset(params.stop_token_ids)
        self._shows_stops = params.include_stop_str_in_output
        self._min_tokens, self._max_tokens = params.min_tokens, max_tokens
        self._vocab_size = tokenizer.vocab_size
        self._detokenizer = IncrementalDetokenizer(
            tokenizer, at_start=at_start, show_control=not params.skip_special_tokens
        )
        self._stops = StopMatcher(params.stop, keep=self._shows_stops)
        self._decoded = 0
        """Characters decoded so far."""
        self._released = 0
        """Characters released so far."""
        self._held: deque[tuple[int, int, Sampled]] = deque()
        """Tokens not released yet, each with the characters decoded before and after it."""
        self._reported = frozenset(reported)
        self._control: deque[tuple[int, int]] = deque()
        """Control tokens to report that are not released yet, each with the characters decoded before it."""
        self.count = 0
        """Tokens taken so far, an end-of-sequence token included."""

    def push(self, sampled: Sampled) -> Piece:
        """Take the next token."""
        self.count += 1
        if sampled.token < 0:
            return Piece(finish_reason="error")
        is_eos = sampled.token in self._eos_ids
        ends = is_eos or sampled.token in self._stop_ids
        text = "" if ends and not self._shows_stops else self._text(sampled.token)
        if ends and not text:
            return replace(self._finish("stop", "", stop_reason=None if is_eos else sampled.token), end=sampled)
        self._held.append((self._decoded, self._decoded + len(text), sampled))
        self._decoded += len(text)
        if sampled.token in self._reported:
            self._control.append((self._decoded, sampled.token))
        released, stop = self._stops.push(text, ends=self._stops_now)
        self._released += len(released)
        if stop is not None:
            tokens = self._take(lambda before, _: before < self._released)
            return Piece(
                text=released, items=self._items(released), tokens=tokens, finish_reason="stop", stop_reason=stop
            )
        if ends:
            return self._finish("stop", released, stop_reason=None if is_eos else sampled.token)
        if self.count >= self._max_tokens:
            return self._finish("length", released)
        tokens = self._take(lambda _, after: after <= self._released)
        return Piece(text=released, items=self._items(released), tokens=tokens)

    def _text(self, token: int) -> str:
        """The text that a token completes."""
        if token in self._reported:
            return self._detokenizer.flush()
        # Padding rows of the embedding beyond the vocabulary have no text.
        return self._detokenizer.push(token) if token < self._vocab_size else ""

    @property
    def _stops_now(self) -> bool:
        """Whether a stop string that the newest token completes ends the completion."""
        return self.count > self._min_tokens

    def _finish(self, reason: Literal["stop", "length"], text: str, *, stop_reason: int | None = None) -> Piece:
        """Release the held-back text; the replacement of a broken last character may still complete a stop string."""
        tail, stop = self._stops.push(self._detokenizer.flush(), ends=self._stops_now)
        if stop is None:
            tail += self._stops.flush()
        self._released += len(tail)
        tokens = self._take(lambda before, _: stop is None or before < self._released)
        text += tail
        return Piece(
            text=text,
            items=self._items(text),
            tokens=tokens,
            finish_reason="stop" if stop else reason,
            stop_reason=stop_reason if stop is None else stop,
        )

    def _items(self, text: str) -> tuple[str | int, ...]:
        """The text that was released last, and the control tokens in it."""
        if not self._reported:
            return ()
        items: list[str | int] = []
        position = start = self._released - len(text)
        while self._control and self._control[0][0] <= self._released:
            offset, token = self._control.popleft()
            if offset > position:
                items.append(text[position - start : offset - start])
                position = offset
            items.append(token)
        if position < self._released:
            items.append(text[position - start :])
        return tuple(items)

    def _take(self, ready: Callable[[int, int], bool]) -> tuple[Sampled, ...]:
        taken: list[Sampled] = []
        while self._held and ready(*self._held[0][:2]):
            taken.append(self._held.popleft()[2])
        return tuple(taken)
