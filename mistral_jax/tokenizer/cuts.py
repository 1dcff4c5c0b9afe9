"""Where a long text can be cut so that its pieces, encoded one by one, give the ids of the whole.

Encoding ten megabytes at once takes seconds, in which nothing else runs and a prompt that is too long cannot be refused
early. Two facts make pieces possible; a vocabulary for which neither is known is encoded in one piece:

- **Byte-level BPE** merges within words only, and the known expressions that split words
  (`conversion.tokenizer.word_splits`) look ahead, never back. No alternative of theirs has a space after a non-space, a
  digit after a letter, and so on, so a word always ends there, and the words of the rest do not depend on the text
  before it.
- **BPE and unigram vocabularies over the whole text** (sentencepiece) can only join two adjacent characters if some
  piece contains them side by side. Where none does, no token spans the two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

from conversion.tokenizer.word_splits import recognize

type Json = dict[str, Any]

PIECE = 16_384
"""Characters of a piece, about ten milliseconds of work."""

MAX_RUN = 1_048_576
"""Most characters without a place to cut: ordinary text has one every few words, and the time for a word grows faster
than its length."""

_MAX_KNOWN = 65_536
_SPACE = "▁"
_BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")
_NO_SPACE_EVERYWHERE = "\u180e\u200b\ufeff"  # spaces for some versions of Unicode, and not for others
_CJK_STOPS = frozenset("。，、！？；：\n")
_CJK = (("\u3041", "\u3096"), ("\u30a1", "\u30fa"), ("\u4e00", "\u9fa5"), ("\uac00", "\ud7a3"))


@dataclass(frozen=True, kw_only=True)
class Cuts:
    """Finds places to cut."""

    between: Callable[[str, str], bool]
    """Whether a text can be cut between two neighbouring characters."""
    whole: tuple[str, ...] = ()
    """Texts that are single tokens, matched before anything else: never cut at or in one of them."""

    _known: dict[str, bool] = field(default_factory=dict[str, bool], init=False, repr=False, compare=False)

    def next(self, text: str, start: int, *, piece: int = PIECE) -> int | None:
        """Where the piece that begins at `start` ends, at most `MAX_RUN` characters later; None: there is no such
        place."""
        if len(text) - start <= piece:
            return len(text)
        before = range(start + piece, start, -1)
        behind = range(start + piece + 1, min(len(text), start + MAX_RUN + 1))
        place = self._first(text, before) or self._first(text, behind)
        if place is None and len(text) - start <= MAX_RUN:
            return len(text)
        return place

    def _first(self, text: str, places: range) -> int | None:
        known = self._known
        if len(known) > _MAX_KNOWN:
            known.clear()
        for at in places:
            pair = text[at - 1 : at + 1]
            can = known.get(pair)
            if can is None:
                can = known[pair] = self.between(pair[0], pair[1])
            if can and (self._pattern is None or not self._touched(text, at)):
                return at
        return None

    def _touched(self, text: str, at: int) -> bool:
        assert self._pattern is not None
        longest = max(map(len, self.whole))
        first = max(0, at - longest)
        # Every occurrence of one of them, also within another one.
        for begin in range(first, at + 1):
            match = self._pattern.match(text, begin)
            if match is not None and match.end() >= at:
                return True
        return False

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        longest_first = sorted(self.whole, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first))) if self.whole else None


def ends_word(before: str, after: str) -> bool:
    """Whether every known expression for words (tekken, Llama 3, GPT-2) ends one between these two characters."""
    if after == " ":
        return not before.isspace() and before not in _NO_SPACE_EVERYWHERE
    if before.isascii() and before.isalnum():
        if after == "\n":
            return True
        return after.isascii() and after.isalnum() and before.isdigit() != after.isdigit()
    return after in _CJK_STOPS and any(first <= before <= last for first, last in _CJK)


class NoPieceAcross:
    """Whether no piece of a vocabulary has two characters side by side; spaces are written as ▁ there."""

    def __init__(self, pieces: Iterable[str]) -> None:
        self._pieces = tuple(piece for piece in pieces if not _BYTE_PIECE.fullmatch(piece))

    def __call__(self, before: str, after: str) -> bool:
        before, after = before.replace(" ", _SPACE), after.replace(" ", _SPACE)
        pairs, known = self._tables
        # Two adjacent unknown characters may become one unknown token.
        return before + after not in pairs and (before in known or after in known)

    @cached_property
    def _tables(self) -> tuple[frozenset[str], frozenset[str]]:
        """Adjacent pairs in pieces, and the characters that are pieces. Computed for the first long text."""
        pairs = frozenset(piece[i : i + 2] for piece in self._pieces for i in range(len(piece) - 1))
        return pairs, frozenset(piece for piece in self._pieces if len(piece) == 1)


def joins_bytes(pieces: Iterable[str]) -> bool:
    """Whether some piece consists of a byte and something else: its spelling does not show which characters of the text
    are adjacent."""
    return any("<0x" in piece and _BYTE_PIECE.search(piece) and not _BYTE_PIECE.fullmatch(piece) for piece in pieces)


def cuts_of_json(data: Mapping[str, Any], *, byte_level: bool, has_prefix: bool) -> Cuts | None:
    """Where texts can be cut for a tokenizer.json; None where that is not known.

    Args:
      data: the parsed file.
      byte_level: whether its vocabulary is byte-level BPE.
      has_prefix: whether a text that begins the prompt is encoded with a prefix.
    """
    added = [token for token in cast("list[Json]", data.get("added_tokens") or []) if not token.get("special")]
    if any(token.get(flag) for token in added for flag in ("lstrip", "rstrip", "single_word")):
        return None
    whole = tuple(str(token["content"]) for token in added if token.get("content"))
    model = cast("Json", data["model"])
    if byte_level:
        known = recognize(data.get("pre_tokenizer")) is not None and not data.get("normalizer")
        return Cuts(between=ends_word, whole=whole) if known else None
    plain = not any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    pieces: Sequence[str] = tuple(model["vocab"])
    # The prefix is added after added tokens, too, but only while the first piece is encoded.
    if not plain or joins_bytes(pieces) or (has_prefix and whole) or not _only_writes_spaces(data):
        return None
    spelled = tuple(text for token in whole for text in {token, token.replace(" ", _SPACE), token.replace(_SPACE, " ")})
    return Cuts(between=NoPieceAcross(pieces), whole=spelled)


def _only_writes_spaces(data: Mapping[str, Any]) -> bool:
    """Whether the only change to a text before the merges is that spaces become ▁, with one more in front."""
    normalizer, words = data.get("normalizer") or {}, data.get("pre_tokenizer") or {}
    steps = cast("list[Json]", normalizer["normalizers"] if normalizer.get("type") == "Sequence" else [normalizer])
    for step in steps:
        replaces = step.get("type") == "Replace" and step.get("pattern") == {"String": " "}
        prepends = step.get("type") == "Prepend" and step.get("prepend") == _SPACE
        if step and not prepends and not (replaces and step.get("content") == _SPACE):
            return False
    return not words or (words.get("type") == "Metaspace" and words.get("replacement", _SPACE) == _SPACE)
