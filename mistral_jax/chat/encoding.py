"""Encoding a rendered conversation to token ids, a piece at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mistral_jax.chat.trusted import ControlToken
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer

type Segments = list[str | ControlToken]


@dataclass(frozen=True, kw_only=True)
class PromptPieces:
    """A prompt that has not been encoded yet."""

    least: int
    """A lower bound of its number of tokens."""
    pieces: Iterator[list[int]]
    """Its ids, in order; each list takes some milliseconds. Raises `TokenizerError` where a text cannot be encoded."""
    in_reasoning: bool = False
    """Whether it ends with the start of the model's reasoning."""


def by_format(segments: Segments, tokenizer: Tokenizer) -> PromptPieces:
    """For formats that are defined on ids: each text is encoded by itself."""
    return PromptPieces(least=_least(segments, tokenizer), pieces=_by_format(segments, tokenizer))


def by_template(segments: Segments, tokenizer: Tokenizer) -> PromptPieces:
    """For texts that a template rendered."""
    return PromptPieces(least=_least(segments, tokenizer), pieces=_by_template(segments, tokenizer))


def _least(segments: Segments, tokenizer: Tokenizer) -> int:
    # Control tokens may consume the spaces around them.
    return sum(tokenizer.least_tokens(s.strip()) if isinstance(s, str) else 1 for s in segments)


def _by_format(segments: Segments, tokenizer: Tokenizer) -> Iterator[list[int]]:
    for segment in segments:
        if isinstance(segment, ControlToken):
            yield [segment.id]
        else:
            yield from tokenizer.encode_pieces(segment)


def _by_template(segments: Segments, tokenizer: Tokenizer) -> Iterator[list[int]]:
    strip = False
    for i, segment in enumerate(segments):
        if isinstance(segment, ControlToken):
            yield [segment.id]
            strip = _strips(tokenizer, segment.id)[1]
            continue
        text = segment.lstrip() if strip else segment
        following = segments[i + 1] if i + 1 < len(segments) else None
        if isinstance(following, ControlToken) and _strips(tokenizer, following.id)[0]:
            text = text.rstrip()
        if i > 0 and isinstance(tokenizer, ByteTableTokenizer):
            yield from tokenizer.encode_pieces(text, at_start=tokenizer.starts_after_control(text))
        else:
            yield from tokenizer.encode_pieces(text)
        strip = False


def _strips(tokenizer: Tokenizer, token_id: int) -> tuple[bool, bool]:
    """Whether a control token consumes the whitespace before and after it."""
    return tokenizer.control_strips(token_id) if isinstance(tokenizer, ByteTableTokenizer) else (False, False)
