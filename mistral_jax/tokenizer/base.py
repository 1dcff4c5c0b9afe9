"""The interface of tokenizers, whatever file they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol


class Tokenizer(Protocol):
    """Text to token ids and back, byte-exact.

    `encode` never produces a control token: `</s>` or `[INST]` in the text of a user is text. Control tokens are
    inserted by id, through `control_id`, by the code that renders a prompt (see `mistral_jax.chat`).
    """

    @property
    def vocab_size(self) -> int:
        """Number of ids; valid ids are [0, vocab_size). May be less than the model's padded vocabulary."""
        ...

    @property
    def bos_id(self) -> int | None: ...

    @property
    def eos_id(self) -> int | None: ...

    @property
    def unk_id(self) -> int | None: ...

    @property
    def pad_id(self) -> int | None: ...

    @property
    def add_bos(self) -> bool:
        """Whether a raw text prompt starts with `bos_id`."""
        ...

    @property
    def control_tokens(self) -> dict[str, int]:
        """Control and special tokens by their text, such as {"<s>": 1, "[INST]": 3}."""
        ...

    @property
    def strips_leading_space(self) -> bool:
        """True for sentencepiece models with a dummy prefix: one leading space of a decoded text is not part of it."""
        ...

    def encode(self, text: str, *, at_start: bool = True) -> list[int]:
        """Token ids of plain text; no BOS, no EOS, no control tokens.

        `at_start` says that the text begins the prompt or follows a control token, which is where a sentencepiece model
        puts its dummy prefix space.
        """
        ...

    def encode_pieces(self, text: str, *, at_start: bool = True) -> Iterator[list[int]]:
        """The ids of `encode`, a piece of the text at a time.

        Raises:
          ValueError: from the iterator: the text cannot be encoded.
        """
        ...

    def least_tokens(self, text: str) -> int:
        """A lower bound of the text's number of tokens, without encoding it; 0 where nothing is known."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; b"" for control tokens.

        Raises:
          IndexError: the id is outside the vocabulary.
        """
        ...

    def token_text(self, token_id: int) -> str:
        """The token as its vocabulary writes it (`▁Hello`, `<0x0A>`, `[INST]`), for display."""
        ...

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        """Text of a whole sequence; invalid UTF-8 becomes U+FFFD. With `skip_control=False` control tokens appear as
        text."""
        ...
