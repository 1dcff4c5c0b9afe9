"""A tokenizer's vocabulary as llguidance wants it, and the sets of tokens that constraints are made of."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from typing import Final

import numpy as np
from llguidance import LLTokenizer

from mistral_jax.tokenizer.base import Tokenizer

_MARKER = 0xFF
"""The byte with which llguidance marks special tokens. No UTF-8 text has it."""

_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


class Vocabulary:
    """One tokenizer, compiled for llguidance: a tree over the bytes of its tokens.

    That takes 0.07 s for 32,768 tokens and 0.4 s for 131,072.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_ids: Collection[int]) -> None:
        """Builds the tree.

        Args:
          tokenizer: The tokenizer.
          vocab_size: V, the model's vocabulary, which may be larger than the tokenizer's; ids in between are never
            allowed.
          eos_ids: The tokens that end a completion.

        Raises:
          ValueError: the sizes or ids contradict each other.
        """
        known = tokenizer.vocab_size
        if vocab_size < known:
            raise ValueError(f"The tokenizer has {known} tokens, the model only {vocab_size}: they do not fit.")
        if any(not 0 <= i < vocab_size for i in eos_ids):
            raise ValueError(f"End-of-sequence ids {sorted(eos_ids)} must lie below {vocab_size}.")
        self.size: Final = vocab_size
        self.eos_ids: Final = frozenset(eos_ids)
        self.strips_leading_space: Final = tokenizer.strips_leading_space
        control = self.eos_ids | set(tokenizer.control_tokens.values())
        table = [tokenizer.token_bytes(i) for i in range(known)]
        spelled = {data for i, data in enumerate(table) if not _BYTE_TOKEN.fullmatch(tokenizer.token_text(i))}
        usable = [
            # A token that begins with the marker would look like a special one. It is no text in any case.
            bool(data) and data[0] != _MARKER and i not in control
            # Sentencepiece writes `a` as `a`, never as `<0x61>`: models have not seen that.
            and not (data in spelled and _BYTE_TOKEN.fullmatch(tokenizer.token_text(i)))
            for i, data in enumerate(table)
        ]  # fmt: skip
        self._bytes: Final = [data if ok else b"" for data, ok in zip(table, usable, strict=True)]
        self.text: Final = self.mask(i for i, ok in enumerate(usable) if ok)
        """int32 [words]: the tokens that are text, that is, all but control tokens and unused ids."""
        self.eos: Final = self.mask(self.eos_ids)
        """int32 [words]: the end-of-sequence tokens."""
        self.begins_with_space: Final = self.mask(i for i, data in enumerate(self._bytes) if data[:1] == b" ")
        """int32 [words]"""
        self._ids: Final = {data: i for i, data in reversed(list(enumerate(self._bytes))) if data}
        self._longest: Final = max(map(len, self._bytes), default=0)
        self._encode = tokenizer.encode
        self.compiled: Final = LLTokenizer(
            _Wrapper(self, [*_with_marks(self._bytes, control), *([b""] * (vocab_size - known))]),  # pyright: ignore[reportArgumentType]
            eos_token=sorted(self.eos_ids) or [vocab_size],
        )
        """llguidance's form."""

    @property
    def words(self) -> int:
        """Words of 32 tokens in a mask: ceil(V / 32)."""
        return -(-self.size // 32)

    def mask(self, ids: Iterable[int]) -> np.ndarray:
        """A set of tokens as a mask.

        Returns:
          int32 [words]; bit t % 32 of word t // 32 is set if token t is in the set.
        """
        bits = np.zeros(self.words * 32, np.uint8)
        bits[list(ids)] = 1
        return np.packbits(bits, bitorder="little").view("<i4").astype(np.int32)

    def is_text(self, token: int) -> bool:
        """Whether a token is text: no control token, no unused id."""
        return token < len(self._bytes) and bool(self._bytes[token])

    def starts_with_space(self, token: int) -> bool:
        """Whether a token's text begins with a space."""
        return token < len(self._bytes) and self._bytes[token][:1] == b" "

    def tokenize(self, text: str) -> list[int]:
        """The natural tokens of a piece of text inside a completion; their bytes are exactly the text's."""
        data = text.encode()
        tokens = self._encode(text, at_start=False)
        if b"".join(self._bytes[token] for token in tokens) == data:
            return tokens
        # The tokenizer normalises the text, or lacks a character of it.
        return self._longest_matches(data)

    def _longest_matches(self, data: bytes) -> list[int]:
        """The text in the longest tokens, from the left; what the vocabulary cannot write is left out."""
        tokens: list[int] = []
        start = 0
        while start < len(data):
            for end in range(min(len(data), start + self._longest), start, -1):
                token = self._ids.get(data[start:end])
                if token is not None:
                    tokens.append(token)
                    start = end
                    break
            else:
                start += 1
        return tokens


class _Wrapper:
    """What llguidance asks of a tokenizer in Python (its `TokenizerWrapper`, which is only for byte strings)."""

    is_tokenizer_wrapper = True
    bos_token_id = None
    special_token_ids = ()

    def __init__(self, vocabulary: Vocabulary, tokens: list[bytes]) -> None:
        # Without an end-of-sequence token, llguidance gets one beyond the vocabulary, which no mask has room for.
        self.tokens = tokens if vocabulary.eos_ids else [*tokens, _marked(vocabulary.size)]
        self.eos_token_id = min(vocabulary.eos_ids, default=vocabulary.size)
        self._tokenize = vocabulary.tokenize

    def __call__(self, text: str) -> list[int]:
        return self._tokenize(text)


def _with_marks(table: Sequence[bytes], control: Collection[int]) -> list[bytes]:
    """The bytes of the tokens, and for control tokens names that no grammar of a user can contain."""
    return [_marked(i) if i in control else data for i, data in enumerate(table)]


def _marked(token: int) -> bytes:
    return b"\xff<|%d|>" % token
