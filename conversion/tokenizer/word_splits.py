"""How byte-level BPE vocabularies split a text into words before merging, by name in GGUF files (`tokenizer.ggml.pre`).

Merges never cross a word boundary, so a wrong expression gives wrong ids for ordinary text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

type Json = dict[str, Any]

TEKKEN_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""The word split of Mistral's tekken vocabulary: the `pattern` of every tekken.json up to version 13."""

LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True, kw_only=True)
class WordSplit:
    """One word split."""

    name: str
    """Its name in GGUF files."""
    steps: tuple[Json, ...]
    """The `pre_tokenizers` of tokenizer.json in front of the final one, `ByteLevel`."""
    gpt2_words: bool = False
    """Whether that final one splits by GPT-2's expression itself."""
    ignore_merges: bool
    """Whether a word in the vocabulary becomes one token, regardless of the merges."""
    add_bos: bool
    """Whether prompts begin with BOS where a GGUF file does not say."""

    def pre_tokenizer(self) -> Json:
        """The `pre_tokenizer` of tokenizer.json."""
        return {"type": "Sequence", "pretokenizers": [*self.steps, byte_level(use_regex=self.gpt2_words)]}


def byte_level(*, use_regex: bool = False) -> Json:
    """The part of tokenizer.json that spells bytes as letters, as pre-tokenizer or as decoder."""
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": use_regex}


def _split(pattern: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


TEKKEN = WordSplit(name="tekken", steps=(_split(TEKKEN_PATTERN),), ignore_merges=True, add_bos=True)
LLAMA3 = WordSplit(name="llama-bpe", steps=(_split(LLAMA3_PATTERN),), ignore_merges=True, add_bos=True)
SMOLLM = WordSplit(
    name="smollm",
    steps=({"type": "Digits", "individual_digits": True},),
    gpt2_words=True,
    ignore_merges=False,
    add_bos=False,
)
_SAME_WORDS = WordSplit(name="smaug-bpe", steps=LLAMA3.steps, ignore_merges=False, add_bos=False)

# Names that llama.cpp (llama-vocab.cpp) treats alike.
_LLAMA3_NAMES = (
    *("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "jina-v5-nano",
)
WORD_SPLITS: Mapping[str, WordSplit] = {
    **dict.fromkeys(_LLAMA3_NAMES, LLAMA3),
    "smaug-bpe": _SAME_WORDS,
    "tekken": TEKKEN,
    "smollm": SMOLLM,
}
"""By all names of `tokenizer.ggml.pre` that are implemented."""


def is_tekken(ids: Mapping[str, int]) -> bool:
    """Whether these ids by text are Mistral's tekken vocabulary: 1,000 control tokens, then the bytes in order."""
    return ids.get("[INST]") == 3 and ids.get("Ā") == 1000 and ids.get("Ġ") == 1032 and 130_000 <= len(ids) <= 135_000


def recognize(pre_tokenizer: Json | None) -> WordSplit | None:
    """The known word split of a `pre_tokenizer` of tokenizer.json; None if it is another."""
    if not pre_tokenizer or pre_tokenizer.get("type") != "Sequence":
        return None
    found = [_essence(step) for step in cast("list[Json]", pre_tokenizer["pretokenizers"])]
    for split in (TEKKEN, LLAMA3, SMOLLM):
        if found == [_essence(step) for step in split.pre_tokenizer()["pretokenizers"]]:
            return split
    return None


def _essence(step: Json) -> tuple[Any, ...]:
    """The fields of one step that decide about words, with defaults filled in."""
    kind = step.get("type")
    if kind == "Split":
        pattern = cast("Json", step.get("pattern") or {})
        # These expressions match every character, so that keeping only the matches is the same as splitting at them.
        cuts = (step.get("behavior"), step.get("invert", False)) in (("Isolated", False), ("Removed", True))
        return kind, pattern.get("Regex"), cuts
    if kind == "Digits":
        return kind, step.get("individual_digits", False)
    if kind == "ByteLevel":
        return kind, step.get("add_prefix_space", True), step.get("use_regex", True)
    return kind, repr(step)
