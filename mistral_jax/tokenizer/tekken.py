"""Tokenizers in Mistral's tekken.json: byte-level BPE given as ranked byte strings, after 1,000 control tokens."""

from __future__ import annotations

import logging
from pathlib import Path

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from conversion.tokenizer.byte_level import to_letters
from conversion.tokenizer.files import TokenizerError, known_form
from conversion.tokenizer.special_tokens import SpecialTokens
from conversion.tokenizer.tekken_file import ReasoningEfforts, read_tekken
from conversion.tokenizer.word_splits import LLAMA3_PATTERN, TEKKEN_PATTERN
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.cuts import Cuts, ends_word

_log = logging.getLogger(__name__)


class TekkenTokenizer(ByteTableTokenizer):
    """Mistral's tekken vocabulary, from tekken.json.

    The file ranks byte strings; two adjacent ones merge if their concatenation is ranked, the lowest rank first. Here
    that is byte-level BPE of the `tokenizers` library, with every split of an entry into two entries as a merge of its
    rank. Only the split that merging itself reaches can ever occur, so that the ids are those of tiktoken; unlike
    tiktoken's, this regex engine has no limit on the length of a run of spaces.
    """

    def __init__(
        self,
        *,
        ranks: list[bytes],
        control: list[str],
        pattern: str,
        version: str,
        special: SpecialTokens | None = None,
        efforts: ReasoningEfforts | None = None,
    ) -> None:
        """Builds the tokenizer.

        Args:
          ranks: The byte strings in the order of their ranks; an entry's id is its rank plus `len(control)`.
          control: Texts of the control tokens, in the order of their ids.
          pattern: The regular expression that splits text into words.
          version: Mistral's version, such as "v3".
          special: Only its `add_bos` is used; the control tokens of a tekken vocabulary are fixed.
          efforts: The reasoning efforts that the model knows.

        Raises:
          TokenizerError: a byte value is missing, entries repeat, or the pattern is not a valid expression.
        """
        offset = len(control)
        rank_of = {entry: rank for rank, entry in enumerate(ranks)}
        if len(rank_of) != len(ranks) or len(set(control)) != len(control):
            raise TokenizerError("The tekken vocabulary lists a token twice.")
        if any(bytes([b]) not in rank_of for b in range(256)):
            raise TokenizerError("The tekken vocabulary lacks single bytes; it could not write every text.")
        letters = [to_letters(entry) for entry in ranks]
        merges = [
            (name[:cut], name[cut:])
            for entry, name in zip(ranks, letters, strict=True)
            for cut in range(1, len(entry))
            if entry[:cut] in rank_of and entry[cut:] in rank_of
        ]
        vocab = {name: rank + offset for rank, name in enumerate(letters)}
        with known_form("The tekken vocabulary"):
            words = pre_tokenizers.Split(Regex(pattern), "isolated")
            self._backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])

        self._efforts = efforts
        control_tokens = {text: i for i, text in enumerate(control)}
        super().__init__(
            pieces=[*control, *letters],
            table=[*([b""] * offset), *ranks],
            control_tokens=control_tokens,
            bos_id=control_tokens.get("<s>"),
            eos_id=control_tokens.get("</s>"),
            unk_id=control_tokens.get("<unk>"),
            pad_id=control_tokens.get("<pad>"),
            add_bos=special is None or special.add_bos is not False,
            strips_leading_space=False,
            instruct_version=version,
            cuts=Cuts(between=ends_word) if pattern in (TEKKEN_PATTERN, LLAMA3_PATTERN) else None,
        )

    @classmethod
    def from_file(cls, path: str | Path, *, special: SpecialTokens | None = None) -> TekkenTokenizer:
        """Reads tekken.json.

        Raises:
          TokenizerError: the file is absent, truncated, or of an unknown form.
        """
        file = read_tekken(Path(path))
        _log.debug("tekken %s: %d tokens, %d of them control tokens", file.version, file.size, len(file.control))
        return cls(
            ranks=file.ranks,
            control=file.control,
            pattern=file.pattern,
            version=file.version,
            special=special,
            efforts=file.efforts,
        )

    @property
    def reasoning_efforts(self) -> ReasoningEfforts | None:
        """The reasoning efforts that the model knows; None: it has no such setting."""
        return self._efforts

    def _encode_text(self, text: str, at_start: bool) -> list[int]:
        del at_start
        # The batch call leaves out the offsets into the text, which cost half the time.
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids
