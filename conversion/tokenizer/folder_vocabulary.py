"""Mistral's tekken.json and sentencepiece's tokenizer.model as the tokens, types, scores and merges of a GGUF file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from conversion.tokenizer.byte_level import to_letters
from conversion.tokenizer.files import SENTENCEPIECE_NAME, TokenizerError, check_ids, check_lengths
from conversion.tokenizer.sentencepiece_model import BPE, SPACE, PieceType, SentencePieceModel
from conversion.tokenizer.special_tokens import SpecialTokens
from conversion.tokenizer.tekken_file import TekkenFile
from conversion.tokenizer.word_splits import TEKKEN, TEKKEN_PATTERN

PADDING_SCORE, ADDED_SCORE = -10000.0, -1000.0
"""The scores that llama.cpp's converter gives to unused tokens and to added ones."""


@dataclass(kw_only=True)
class NewVocabulary:
    """A vocabulary before it is written. Texts, types and scores have one entry for each id."""

    model: str
    """ "llama" (sentencepiece BPE) or "gpt2" (byte-level BPE)."""
    pre: str
    """The word split of byte-level BPE, by llama.cpp's name."""
    texts: list[str]
    types: list[int]
    """A `PieceType` for each token."""
    scores: list[float]
    """Empty for the model "gpt2"."""
    merges: list[tuple[str, str]] | None = None
    add_bos: bool = True
    add_space_prefix: bool | None = None
    """Only for the model "llama"."""
    ids: dict[str, int] = field(default_factory=dict[str, int])
    """Default ids of "bos", "eos", "unk", "pad"."""
    version: str | None = None
    """Mistral's instruct format, where the file names it."""


def from_tekken(file: TekkenFile, special: SpecialTokens, source: str) -> NewVocabulary:
    """A tekken vocabulary; of `special` only `add_bos` counts.

    Raises:
      TokenizerError: it splits words in an unknown way; `source` is the name of the file.
    """
    if file.pattern != TEKKEN_PATTERN:
        raise TokenizerError(f"{source} cuts words in a way for which GGUF files have no name.")
    rank_of = {entry: rank for rank, entry in enumerate(file.ranks)}
    letters = [to_letters(entry) for entry in file.ranks]
    merges: list[tuple[str, str]] = []
    for entry, name in zip(file.ranks, letters, strict=True):
        cuts = [cut for cut in range(1, len(entry)) if entry[:cut] in rank_of and entry[cut:] in rank_of]
        cuts.sort(key=lambda cut: (rank_of[entry[:cut]], rank_of[entry[cut:]]))
        merges += [(name[:cut], name[cut:]) for cut in cuts]
    ids = {text: i for i, text in enumerate(file.control)}
    usual = {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "pad": "<pad>"}
    return NewVocabulary(
        model="gpt2",
        pre=TEKKEN.name,
        texts=[*file.control, *letters],
        types=[int(PieceType.CONTROL)] * len(file.control) + [int(PieceType.NORMAL)] * len(letters),
        scores=[],
        merges=merges,
        add_bos=special.add_bos is not False,
        ids={name: ids[text] for name, text in usual.items() if text in ids},
        version=file.version,
    )


def from_sentencepiece(model: SentencePieceModel, special: SpecialTokens, path: Path) -> NewVocabulary:
    """A sentencepiece model with the tokens that side files add to it.

    Args:
      model: The parsed file.
      special: What the side files say.
      path: The file; its name may include the instruct format.

    Raises:
      TokenizerError: the model is of another kind than BPE.
    """
    if model.model_type != BPE:
        raise TokenizerError(f"{path} is a sentencepiece model of another kind than BPE; only BPE is implemented.")
    check_lengths(model.texts, str(path))
    if PieceType.UNKNOWN not in model.types:
        raise TokenizerError(f"{path} has no piece for unknown text, which a sentencepiece model must have.")
    texts, scores, types = list(model.texts), list(model.scores), list(model.types)
    for i, kind in enumerate(types):
        if kind == PieceType.USER_DEFINED:
            texts[i] = texts[i].replace(SPACE, " ")  # matched in the text as it is written
    for token in special.added:
        is_control = special.is_control(token)
        if token.id < len(texts):
            # The model's own spelling takes precedence: only the flag is new.
            if is_control and texts[token.id] == token.text and types[token.id] != PieceType.UNKNOWN:
                types[token.id] = PieceType.CONTROL
            continue
        fill_up(texts, types, token.id)
        texts.append(token.text)
        types.append(PieceType.CONTROL if is_control else PieceType.USER_DEFINED)
    scores += [PADDING_SCORE if kind == PieceType.UNUSED else ADDED_SCORE for kind in types[len(scores) :]]
    ids = {text: i for i, text in enumerate(texts) if types[i] == PieceType.CONTROL}
    usual = {"bos": model.bos, "eos": model.eos, "pad": model.pad}
    version = SENTENCEPIECE_NAME.fullmatch(path.name)
    return NewVocabulary(
        model="llama",
        pre="default",
        texts=texts,
        types=types,
        scores=scores,
        add_bos=special.add_bos is not False,
        add_space_prefix=model.add_dummy_prefix,
        ids={name: ids[text] for name, text in usual.items() if text in ids} | {"unk": types.index(PieceType.UNKNOWN)},
        version=f"v{version[1]}" if version and version[1] else None,
    )


def fill_up(texts: list[str], types: list[int], size: int) -> None:
    """Unused tokens for ids that no file mentions.

    Raises:
      TokenizerError: there are more of them than any vocabulary has.
    """
    check_ids(size - 1, len(texts), "The tokenizer")
    for i in range(len(texts), size):
        texts.append(f"[PAD{i}]")
        types.append(PieceType.UNUSED)
