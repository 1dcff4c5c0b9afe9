"""Tokenizers in Mistral's tekken.json: byte-level BPE given as ranked byte strings, behind 1,000 control tokens."""

from __future__ import annotations

import base64
import binascii
import logging
from pathlib import Path
from typing import Any, cast

from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from mistral_jax.tokenizer.base import TokenizerError
from mistral_jax.tokenizer.byte_level import to_letters
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.special_tokens import SpecialTokens, read_json_object

_log = logging.getLogger(__name__)

# The control tokens of files that list none (versions up to 7), by their ids.
_BUILT_IN = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *(
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
        "[SUFFIX]",
    ),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_VERSIONS_WITHOUT_LIST = ("v1", "v2", "v3", "v7")


class TekkenTokenizer(ByteTableTokenizer):
    """Mistral's tekken vocabulary, from tekken.json.

    The file ranks byte strings; two neighbours merge if their concatenation is ranked, the lowest rank first. That is
    built here as byte-level BPE of the `tokenizers` library, with every split of an entry into two entries as a merge
    of its rank. Of these only the split that merging itself arrives at can ever occur, so that the ids are those of
    tiktoken; unlike tiktoken's, this regex engine has no limit on the length of a run of spaces.
    """

    def __init__(
        self,
        *,
        ranks: list[bytes],
        control: list[str],
        pattern: str,
        version: str,
        special: SpecialTokens | None = None,
    ) -> None:
        """Builds the tokenizer.

        Args:
          ranks: The byte strings in the order of their ranks; an entry's id is its rank plus `len(control)`.
          control: Texts of the control tokens, in the order of their ids.
          pattern: The regular expression that cuts text into words.
          version: Mistral's version, such as "v3".
          special: Only its `add_bos` is used; the control tokens of a tekken vocabulary are fixed.

        Raises:
          TokenizerError: a byte value is missing, entries repeat, or the pattern is no valid expression.
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
        try:
            words = pre_tokenizers.Split(Regex(pattern), "isolated")
            self._backend = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=True))
        except Exception as error:  # the library raises bare Exception for an expression that it cannot parse
            raise TokenizerError(f"The tekken vocabulary cannot be used: {error}.") from error
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        self._backend.pre_tokenizer = pre_tokenizers.Sequence([words, to_bytes])

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
        )

    @classmethod
    def from_file(cls, path: str | Path, *, special: SpecialTokens | None = None) -> TekkenTokenizer:
        """Reads tekken.json.

        Raises:
          TokenizerError: the file is absent, cut short, or of a form that we do not know.
        """
        path = Path(path)
        data = read_json_object(path)
        try:
            config = cast("dict[str, Any]", data["config"])
            version, pattern = str(config["version"]), str(config["pattern"])
            size, num_control = int(config["default_vocab_size"]), int(config["default_num_special_tokens"])
            # Files list more entries than the vocabulary takes: the rest was trained but is not used.
            entries = cast("list[dict[str, Any]]", data["vocab"])[: size - num_control]
            ranks = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
            control = _control_texts(data.get("special_tokens"), num_control, version)
        except (KeyError, TypeError, IndexError, binascii.Error, ValueError) as error:
            detail = f"no {error} in it" if isinstance(error, KeyError) else str(error)
            raise TokenizerError(f"{path} is no tekken vocabulary that we can read: {detail}.") from error
        if len(ranks) != size - num_control or any(entry["rank"] != i for i, entry in enumerate(entries)):
            raise TokenizerError(
                f"{path} promises {size - num_control} ranked tokens and lists {len(ranks)}, or not in the order of "
                "their ranks. "
                "Was the download cut short? Fetch it again."
            )
        _log.debug("tekken %s: %d tokens, %d of them control tokens", version, size, num_control)
        return cls(ranks=ranks, control=control, pattern=pattern, version=version, special=special)

    def _encode_text(self, text: str, at_start: bool) -> list[int]:
        del at_start
        # The batch call leaves out the offsets into the text, which cost half the time.
        return self._backend.encode_batch_fast([text], add_special_tokens=False)[0].ids


def _control_texts(listed: object, count: int, version: str) -> list[str]:
    """All control tokens by id: the listed ones, then fillers."""
    if listed is None:
        if version not in _VERSIONS_WITHOUT_LIST:
            raise ValueError(f"a vocabulary of version {version} must list its special_tokens")
        texts = list(_BUILT_IN)
    else:
        entries = sorted(cast("list[dict[str, Any]]", listed), key=lambda entry: int(entry["rank"]))
        texts = [str(entry["token_str"]) for entry in entries]
        if [int(entry["rank"]) for entry in entries] != list(range(len(entries))):
            raise ValueError("the ranks of its special_tokens have gaps")
    if len(texts) > count:
        raise ValueError(f"it lists {len(texts)} special tokens and has room for {count}")
    return texts + [f"<SPECIAL_{i}>" for i in range(len(texts), count)]
