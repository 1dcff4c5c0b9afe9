"""Hugging Face's tokenizer.json as the tokens, types, scores and merges of a GGUF file."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from conversion.files.regular_file import plain
from conversion.tokenizer.bpe_merges import merges_follow_scores
from conversion.tokenizer.files import TokenizerError, check_ids, check_lengths, known_form, token_id
from conversion.tokenizer.folder_vocabulary import NewVocabulary, fill_up
from conversion.tokenizer.sentencepiece_model import SPACE, PieceType
from conversion.tokenizer.special_tokens import AddedToken, SpecialTokens
from conversion.tokenizer.word_splits import TEKKEN, WORD_SPLITS, is_tekken, recognize

type Json = dict[str, Any]

_log = logging.getLogger(__name__)

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


def from_tokenizer_json(data: Json, special: SpecialTokens, source: str) -> NewVocabulary:
    """A BPE vocabulary, byte-level or with byte fallback.

    Args:
      data: The parsed file.
      special: What the side files say.
      source: The name of the file, for messages.

    Raises:
      TokenizerError: it is broken, of another kind, or splits words in a way that GGUF files have no name for.
    """
    with known_form(source):
        model = cast("Json", data["model"])
        vocab = {text: token_id(i, text) for text, i in cast("Json", model["vocab"]).items()}
        check_lengths(vocab, source)
        merges = [_pair(merge) for merge in cast("list[Any]", model["merges"])]
        added = added_tokens(data, special)
        ids = vocab | {token.text: token.id for token in added}
        if model.get("type", "BPE") != "BPE":
            raise TokenizerError(f"{source} holds a {plain(str(model['type']))} vocabulary; only BPE is implemented.")
        texts, types = _texts(
            vocab, added, special, unknown=model.get("unk_token"), byte_fallback=bool(model.get("byte_fallback"))
        )
        add_bos = begins_with_special(data) if special.add_bos is None else special.add_bos
        if model.get("byte_fallback"):
            vocabulary = _byte_fallback(data, texts, types, merges)
        else:
            vocabulary = _byte_level(data, ids, texts, types, merges, source)
    usual = {
        "bos": ("<s>", "<|begin_of_text|>"),
        "eos": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
        "pad": ("<pad>",),
    }
    control = {texts[i]: i for i, kind in enumerate(types) if kind in (PieceType.CONTROL, PieceType.UNKNOWN)}
    for name, candidates in usual.items():
        if (found := next((control[text] for text in candidates if text in control), None)) is not None:
            vocabulary.ids[name] = found
    if PieceType.UNKNOWN in types:
        vocabulary.ids["unk"] = types.index(PieceType.UNKNOWN)
    vocabulary.add_bos = add_bos
    return vocabulary


def _pair(merge: Any) -> tuple[str, str]:
    """A merge in either form of tokenizer.json."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return str(left), str(right)


def added_tokens(data: Json, special: SpecialTokens) -> tuple[AddedToken, ...]:
    """The file's added tokens and those of the side files, by id."""
    listed = [
        AddedToken(
            id=token_id(token["id"], str(token["content"])),
            text=str(token["content"]),
            special=bool(token.get("special")),
        )
        for token in cast("list[Json]", data.get("added_tokens") or [])
    ]
    flagged = {token.text for token in special.added if token.special}
    known = {token.text for token in listed}
    merged = [*listed, *(token for token in special.added if token.text not in known)]
    return tuple(
        AddedToken(id=token.id, text=token.text, special=token.special or token.text in flagged)
        for token in sorted(merged, key=lambda token: token.id)
    )


def _texts(
    vocab: Mapping[str, int],
    added: Iterable[AddedToken],
    special: SpecialTokens,
    *,
    unknown: str | None,
    byte_fallback: bool,
) -> tuple[list[str], list[int]]:
    texts: list[str] = []
    types: list[int] = []
    by_id = {i: text for text, i in vocab.items()}
    flags = {token.id: token for token in added}
    largest = max([*by_id, *flags], default=-1)
    check_ids(largest, len(by_id) + len(flags), "The tokenizer")
    for i in range(largest + 1):
        text = by_id.get(i)
        if i in flags:
            text = flags[i].text
            is_control = special.is_control(flags[i])
            texts.append(text if is_control else text.replace(SPACE, " "))
            types.append(PieceType.CONTROL if is_control else PieceType.USER_DEFINED)
        elif text is None:
            fill_up(texts, types, i + 1)
        else:
            texts.append(text)
            is_byte = byte_fallback and _BYTE.fullmatch(text) is not None
            types.append(PieceType.BYTE if is_byte else PieceType.NORMAL)
        if text is not None and text == unknown:
            types[i] = PieceType.UNKNOWN
    return texts, types


def begins_with_special(data: Json) -> bool:
    """Whether the file's post-processor puts a special token before a text."""
    processor: Json = data.get("post_processor") or {}
    if not processor:
        return False
    steps = cast("list[Json]", processor["processors"]) if processor.get("type") == "Sequence" else [processor]
    return any(
        step.get("type") == "TemplateProcessing" and len(step["single"]) > 1 and "SpecialToken" in step["single"][0]
        for step in steps
    )


def _byte_level(
    data: Json,
    ids: Mapping[str, int],
    texts: list[str],
    types: list[int],
    merges: list[tuple[str, str]],
    source: str,
) -> NewVocabulary:
    split = TEKKEN if is_tekken(ids) else recognize(data.get("pre_tokenizer"))
    if split is None or data.get("normalizer"):
        known = ", ".join(dict.fromkeys(split.name for split in WORD_SPLITS.values()))
        raise TokenizerError(
            f"{source} cuts texts into words, or normalises them, in a way for which we know no name that GGUF files "
            f"have. Known are: {known}."
        )
    return NewVocabulary(model="gpt2", pre=split.name, texts=texts, types=types, scores=[], merges=merges)


def _byte_fallback(data: Json, texts: list[str], types: list[int], merges: list[tuple[str, str]]) -> NewVocabulary:
    """Scores in the order of the merges; the merges too, where scores cannot express them."""
    first: dict[str, int] = {}
    for rank, (left, right) in enumerate(merges):
        first.setdefault(left + right, rank)
    scores = [-float(first.get(text, len(merges))) for text in texts]
    score_of = {text: scores[i] for i, text in enumerate(texts) if types[i] == PieceType.NORMAL}
    enough = merges_follow_scores(merges, score_of)
    if not enough:
        _log.warning("the tokenizer's merges are not in the order of scores: llama.cpp may cut some texts differently")
    return NewVocabulary(
        model="llama",
        pre="default",
        texts=texts,
        types=types,
        scores=scores,
        merges=None if enough else merges,
        add_space_prefix=adds_prefix(data),
    )


def adds_prefix(data: Json) -> bool:
    """Whether a space goes before a text."""
    steps: list[Json] = []
    for part, plural in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        value: Json = data.get(part) or {}
        steps += cast("list[Json]", value[plural]) if value.get("type") == "Sequence" else [value]
    return any(
        step.get("type") == "Prepend"
        or (
            step.get("type") == "Metaspace"
            and step.get("prepend_scheme", "always") != "never"
            and step.get("add_prefix_space", True)
        )
        for step in steps
    )
