"""The shared part of all our tokenizers: a table from token ids to bytes, the control tokens, and their guarantee."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

from conversion.tokenizer.files import TokenizerError
from mistral_jax.tokenizer.cuts import MAX_RUN, PIECE, Cuts

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class ByteTableTokenizer(ABC):
    """Implements `Tokenizer` for vocabularies in which each id stands for fixed bytes, as all BPE vocabularies do.

    A subclass turns plain text into ids (`_encode_text`); this class keeps the tables and ensures that no text,
    whatever it contains, becomes a control token. Instances are immutable and may be used by several threads.
    """

    def __init__(
        self,
        *,
        pieces: Sequence[str],
        table: Sequence[bytes],
        control_tokens: Mapping[str, int],
        bos_id: int | None,
        eos_id: int | None,
        unk_id: int | None,
        pad_id: int | None,
        add_bos: bool,
        strips_leading_space: bool,
        instruct_version: str | None = None,
        cuts: Cuts | None = None,
    ) -> None:
        """Takes the vocabulary as tables.

        Args:
          pieces: The vocabulary's own spelling of each token.
          table: The bytes of each token; b"" for control tokens and unused ids.
          control_tokens: Control tokens by their text.
          bos_id, eos_id, unk_id, pad_id: Ids, None where the vocabulary has no such token.
          add_bos: Whether a raw prompt starts with BOS.
          strips_leading_space: Whether one leading space of a decoded text is the dummy prefix.
          instruct_version: Mistral's name of the instruct format that the vocabulary was made for ("v1" … "v15"), where
            known.
          cuts: Where a long text can be cut without changing its ids; None: unknown, it is encoded whole.

        Raises:
          TokenizerError: an id is outside the vocabulary, or the tables disagree.
        """
        if len(pieces) != len(table):
            raise TokenizerError(f"The vocabulary spells {len(pieces)} tokens but gives bytes for {len(table)}.")
        named = {"BOS": bos_id, "EOS": eos_id, "UNK": unk_id, "PAD": pad_id, **control_tokens}
        for name, token_id in named.items():
            if token_id is not None and not 0 <= token_id < len(pieces):
                raise TokenizerError(
                    f"Token {name!r} has id {token_id}, outside the vocabulary of {len(pieces)}. "
                    "The tokenizer files contradict each other: fetch them again, all from the same repository."
                )
        self._pieces = tuple(pieces)
        self._table = tuple(table)
        self._control_tokens = dict(control_tokens)
        self._control_text = {token_id: text for text, token_id in control_tokens.items()}
        self._forbidden = frozenset(i for i in control_tokens.values() if i != unk_id)
        self._bos_id, self._eos_id, self._unk_id, self._pad_id = bos_id, eos_id, unk_id, pad_id
        self._add_bos = add_bos and bos_id is not None
        self._strips_leading_space = strips_leading_space
        self._instruct_version = instruct_version
        self._cuts = cuts
        # Text without tokens of known bytes may become one token, however long it is.
        writes_all = cuts is not None and len({data for data in table if len(data) == 1}) == 256
        self._longest = max(map(len, table)) if writes_all else None

    @property
    def vocab_size(self) -> int:
        """Number of ids; valid ids are [0, vocab_size)."""
        return len(self._pieces)

    @property
    def bos_id(self) -> int | None:
        """The id that begins a sequence, where there is one."""
        return self._bos_id

    @property
    def eos_id(self) -> int | None:
        """The id that ends a sequence, where there is one."""
        return self._eos_id

    @property
    def unk_id(self) -> int | None:
        """The id for unknown text, where there is one."""
        return self._unk_id

    @property
    def pad_id(self) -> int | None:
        """The id of padding, where there is one."""
        return self._pad_id

    @property
    def add_bos(self) -> bool:
        """Whether a raw text prompt starts with `bos_id`."""
        return self._add_bos

    @property
    def control_tokens(self) -> dict[str, int]:
        """Control tokens by their text; a copy."""
        return dict(self._control_tokens)

    @property
    def strips_leading_space(self) -> bool:
        """Whether one leading space of a decoded text is the vocabulary's dummy prefix and not part of the text."""
        return self._strips_leading_space

    @property
    def instruct_version(self) -> str | None:
        """Mistral's name of the instruct format that this vocabulary was made for, such as "v3"; None if unknown."""
        return self._instruct_version

    def control_id(self, text: str) -> int:
        """The id of a control token.

        Raises:
          TokenizerError: the vocabulary has no such control token.
        """
        try:
            return self._control_tokens[text]
        except KeyError:
            known = ", ".join(sorted(self._control_tokens, key=self._control_tokens.__getitem__)[:30])
            raise TokenizerError(f"The vocabulary has no control token {text!r}. It has: {known}.") from None

    def encode(self, text: str, *, at_start: bool = True) -> list[int]:
        """Token ids of plain text; never a control token, whatever the text contains.

        Lone surrogates, which no UTF-8 text has, are read as U+FFFD.

        Args:
          text: The text.
          at_start: Whether the text begins the prompt or follows a control token.
        """
        return [token for piece in self.encode_pieces(text, at_start=at_start) for token in piece]

    def encode_pieces(self, text: str, *, at_start: bool = True, piece: int = PIECE) -> Iterator[list[int]]:
        """The ids of `encode`, a piece of text at a time, so that a caller can stop early, or let other work run.

        Args:
          text: The text.
          at_start: Whether the text begins the prompt or follows a control token.
          piece: Approximate characters of a piece.

        Raises:
          TokenizerError: from the iterator: the text has far too many characters without the end of a word, or the
            library that encodes it gives up.
        """
        if not text.isascii() and _LONE_SURROGATE.search(text):
            text = _LONE_SURROGATE.sub("\ufffd", text)
        start = 0
        while start < len(text):
            end = len(text) if self._cuts is None else self._cuts.next(text, start, piece=piece)
            if end is None:
                raise TokenizerError(
                    f"The text has more than {MAX_RUN:,} characters without the end of a word (from character "
                    f"{start:,} on); no such text is encoded."
                )
            yield self._encode_guarded(text[start:end], at_start and start == 0)
            start = end

    def least_tokens(self, text: str) -> int:
        """A lower bound of the text's number of tokens, without encoding it: no token covers more than a known number
        of bytes."""
        if self._longest is None:
            return 0
        size = len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
        return -(-size // self._longest)

    def encode_after_control(self, text: str) -> list[int]:
        """Token ids of the text that a chat template wrote after a control token.

        Templates are written for one tokenizer: some write the space that others leave to the dummy prefix.
        """
        return self.encode(text, at_start=self.starts_after_control(text))

    def starts_after_control(self, text: str) -> bool:
        """The value of `at_start` for text that a chat template wrote after a control token."""
        del text
        return True

    def control_strips(self, token_id: int) -> tuple[bool, bool]:
        """Whether a control token consumes the whitespace (before, after) it in a rendered template."""
        del token_id
        return False, False

    @abstractmethod
    def _encode_text(self, text: str, at_start: bool) -> list[int]:
        """Token ids of text that is not empty and has no lone surrogates."""

    def _encode_guarded(self, text: str, at_start: bool) -> list[int]:
        """Encodes text; errors of the library become a `TokenizerError`.

        The tokenizers library panics where its regular-expression engine gives up; in Python that is not an
        `Exception`, and no other code would catch it.
        """
        try:
            return self._encode_safely(text, at_start)
        except (TokenizerError, MemoryError):
            raise
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise TokenizerError(f"The text of {len(text):,} characters cannot be encoded: {reason}.") from error

    def _encode_safely(self, text: str, at_start: bool) -> list[int]:
        """Encodes text; where the vocabulary itself would merge letters to a control token, it is split in two.

        No known vocabulary merges letters to control tokens, but a side file may declare any piece to be one.
        """
        ids = self._encode_text(text, at_start)
        if self._forbidden.isdisjoint(ids):
            return ids
        if len(text) == 1:
            raise TokenizerError(
                f"The vocabulary can write {text!r} only with a control token; it is not safe to serve."
            )
        middle = len(text) // 2
        return self._encode_safely(text[:middle], at_start) + self._encode_safely(text[middle:], False)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token adds to a text; b"" for control tokens.

        Raises:
          IndexError: the id is outside the vocabulary.
        """
        self._check(token_id)
        return self._table[token_id]

    def token_text(self, token_id: int) -> str:
        """The token as its vocabulary writes it, for display.

        Raises:
          IndexError: the id is outside the vocabulary.
        """
        self._check(token_id)
        return self._pieces[token_id]

    def decode(self, token_ids: Sequence[int], *, skip_control: bool = True) -> str:
        """Text of a whole sequence; invalid UTF-8 becomes U+FFFD. With `skip_control=False` control tokens appear as
        text.

        One leading space is dropped where the vocabulary has a dummy prefix; control tokens before it do not count.

        Raises:
          IndexError: an id is outside the vocabulary.
        """
        out = bytearray()
        at_start = self._strips_leading_space
        for token_id in token_ids:
            piece = self.token_bytes(token_id)
            if piece:
                out += piece[1:] if at_start and piece[0] == 0x20 else piece
                at_start = False
            elif not skip_control:
                out += self._control_text.get(token_id, "").encode()
        return out.decode("utf-8", "replace")

    def _check(self, token_id: int) -> None:
        if not 0 <= token_id < len(self._table):
            raise IndexError(f"Token id {token_id} is outside the vocabulary of {len(self._table)}.")
