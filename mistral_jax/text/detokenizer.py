"""Tokens to text, one token at a time; no byte is lost or added."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from mistral_jax.tokenizer.base import Tokenizer


class IncrementalDetokenizer:
    """Turns the tokens of one assistant text into pieces of text, in order.

    A character may be spread over several tokens, so that a piece may be empty; the pieces of all pushes and of the
    final flush, joined, are exactly `tokenizer.decode` of all the tokens. Costs one table look-up per token, however
    long the text gets.

    Example: with the tokens `▁Hi`, `<0xF0>`, `<0x9F>`, `<0x98>`, `<0x80>` the pushes give "Hi", "", "", "" and "😀".
    """

    def __init__(self, tokenizer: Tokenizer, *, at_start: bool = True, show_control: bool = False) -> None:
        """Starts a text.

        Args:
          tokenizer: The vocabulary.
          at_start: Whether the text begins after a control token. False where it continues a raw prompt: then a leading
            space is part of the text even for vocabularies with a dummy prefix.
          show_control: Whether control tokens appear as text, by their names.
        """
        self._token_bytes = tokenizer.token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip_space = at_start and tokenizer.strips_leading_space
        self._control = {i: text.encode() for text, i in tokenizer.control_tokens.items()} if show_control else {}

    def push(self, token_id: int) -> str:
        """The text that this token completes: "" for hidden control tokens and within a character.

        Raises:
          IndexError: the id is outside the vocabulary.
        """
        piece = self._token_bytes(token_id)
        if self._strip_space and piece:
            self._strip_space = False
            piece = piece.removeprefix(b" ")
        if not piece and self._control:
            piece = self._control.get(token_id, b"")
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """The rest at the end of the text: U+FFFD for an incomplete character, else ""."""
        return self._decoder.decode(b"", final=True)


def begins_text(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether the text after a raw prompt begins a new text (after a control token such as BOS) or continues the
    prompt's."""
    return prompt[-1] < tokenizer.vocab_size and not tokenizer.token_bytes(prompt[-1])


def shown_token(tokenizer: Tokenizer, token: int) -> tuple[bytes, str]:
    """A token's bytes, and these as text: U+FFFD where they are not UTF-8 by themselves; control tokens by name."""
    # Padding rows of the embedding beyond the vocabulary have no text.
    known = token < tokenizer.vocab_size
    raw = tokenizer.token_bytes(token) if known else b""
    return raw, raw.decode("utf-8", "replace") if raw or not known else tokenizer.token_text(token)
