"""The tokenizer in a GGUF file's metadata, as the tokenizer files of a model folder.

- `llama`: the sentencepiece model is rebuilt. Its scores give the order of merging, so the ids are those of the
  original.
- `llama` with placeholders for scores: BPE with byte fallback in tokenizer.json, if the file has the merges.
- `gpt2`: byte-level BPE in tokenizer.json, with the word split that `tokenizer.ggml.pre` names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from conversion.gguf.vocabulary import USE_OVERRIDE, GGUFVocabulary, read_vocabulary
from conversion.tokenizer.bpe_merges import merges_follow_scores, merges_from_scores
from conversion.tokenizer.chat_templates import gguf_chat_templates, is_jinja
from conversion.tokenizer.files import TokenizerError
from conversion.tokenizer.sentencepiece_model import SPACE, PieceType, SentencePieceModel, serialize_sentencepiece
from conversion.tokenizer.word_splits import TEKKEN, WORD_SPLITS, WordSplit, byte_level, is_tekken

type Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GGUFTokenizer:
    """The contents of a tokenizer's files. Either `sentencepiece` or `tokenizer_json` is given."""

    sentencepiece: bytes | None
    """tokenizer.model"""
    tokenizer_json: Json | None
    """tokenizer.json"""
    config: Json
    """tokenizer_config.json: special and added tokens, whether prompts begin with BOS, chat templates."""


def tokenizer_files(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer of a GGUF file as the files of a model folder in Hugging Face's format, by name.

    Beside a tokenizer.model there is an equivalent tokenizer.json: transformers 5 does not read the model faithfully.

    Raises:
      TokenizerError: see `gguf_tokenizer`.
    """
    tokenizer = gguf_tokenizer(metadata)
    files = {"tokenizer_config.json": _dump(tokenizer.config, indent=2)}
    data = tokenizer.tokenizer_json
    if tokenizer.sentencepiece is not None:
        files["tokenizer.model"] = tokenizer.sentencepiece
        vocabulary = read_vocabulary(metadata)
        vocabulary = replace(vocabulary, merges=merges_from_scores(_scores(vocabulary)))
        # Templates may write a space after a control token or leave it to the prefix: Metaspace makes it one in both
        # cases. The price is that a whole text which begins with a space gets no second one.
        data = _byte_fallback_json(vocabulary, *_extent(vocabulary), metaspace=_has_turn_tokens(vocabulary))
        data["post_processor"] = _begin_with(vocabulary, tokenizer.config)
    assert data is not None
    return files | {"tokenizer.json": _dump(data)}


def gguf_tokenizer(metadata: Mapping[str, Any]) -> GGUFTokenizer:
    """Rebuilds the tokenizer of a GGUF file.

    Args:
      metadata: As `GGUFFile.metadata`: texts, ints and bools, lists of texts, numpy arrays of numbers.

    Raises:
      TokenizerError: there is no tokenizer, it contradicts itself, or it is of a kind that is not implemented.
    """
    vocabulary = read_vocabulary(metadata)
    base, end = _extent(vocabulary)
    sentencepiece, data = None, None
    if vocabulary.model == "gpt2":
        words = _word_split(vocabulary)
        add_bos = words.add_bos if vocabulary.add_bos is None else vocabulary.add_bos
        data = _byte_level_json(vocabulary, words, base, end)
    else:
        add_bos = vocabulary.add_bos is not False
        if _scores_decide(vocabulary):
            sentencepiece = _sentencepiece(vocabulary, base)
        elif vocabulary.merges:
            data = _byte_fallback_json(vocabulary, base, end)
        else:
            raise TokenizerError(
                "The GGUF file has placeholders for its tokens' scores and no merges, "
                f"so that nothing says how texts are cut into tokens. {USE_OVERRIDE}"
            )
    config = _config(vocabulary, add_bos=add_bos, templates=gguf_chat_templates(metadata))
    if data is None:
        config["added_tokens_decoder"] = {
            str(i): _added(vocabulary, i) for i in range(end) if i >= base or vocabulary.is_special(i)
        }
    else:
        data["post_processor"] = _begin_with(vocabulary, config)
    return GGUFTokenizer(sentencepiece=sentencepiece, tokenizer_json=data, config=config)


def _extent(vocabulary: GGUFVocabulary) -> tuple[int, int]:
    """The ends of the trained vocabulary and of the added tokens; after that there are only fillers."""
    end = len(vocabulary.tokens)
    while end and vocabulary.is_filler(end - 1):
        end -= 1
    base = end
    while base and (
        vocabulary.types[base - 1] in (PieceType.CONTROL, PieceType.USER_DEFINED) or vocabulary.is_filler(base - 1)
    ):
        base -= 1
    return base, end


# Sentencepiece


def _scores_decide(vocabulary: GGUFVocabulary) -> bool:
    """Whether the scores give the order of merging: they are not placeholders, and the file's merges add nothing to
    them."""
    score_of = _scores(vocabulary)
    merged = {score for text, score in score_of.items() if len(text) > 1}
    if vocabulary.scores is None or (len(merged) == 1 and len(score_of) > 2):
        return False
    return not vocabulary.merges or merges_follow_scores(vocabulary.merges, score_of)


def _scores(vocabulary: GGUFVocabulary) -> dict[str, float]:
    """Scores of the pieces that merging may make, by their texts."""
    scores = vocabulary.scores or [0.0] * len(vocabulary.tokens)
    listed = zip(vocabulary.tokens, scores, vocabulary.types, strict=True)
    return {text: score for text, score, kind in listed if kind == PieceType.NORMAL}


def _sentencepiece(vocabulary: GGUFVocabulary, base: int) -> bytes:
    """The model up to `base`: tokens that were added later are not pieces; tokenizer_config.json lists them."""
    unknown = _unknown_id(vocabulary)
    base = max(base, unknown + 1)
    num_bytes = vocabulary.types.count(PieceType.BYTE)
    if num_bytes not in (0, 256):
        raise TokenizerError(f"The GGUF file has {num_bytes} byte tokens; expected 256, or none. {USE_OVERRIDE}")
    texts: list[str] = []
    types: list[int] = []
    for i in range(base):
        text, kind = vocabulary.tokens[i], vocabulary.types[i]
        if i == unknown:
            kind = PieceType.UNKNOWN
        elif vocabulary.is_special(i):
            kind = PieceType.CONTROL
        elif kind in (PieceType.NORMAL, PieceType.USER_DEFINED):
            text = text.replace(" ", SPACE)
        texts.append(text)
        types.append(kind)
    named = _named(vocabulary)
    assert vocabulary.scores is not None
    return serialize_sentencepiece(
        SentencePieceModel(
            texts=texts,
            scores=vocabulary.scores[:base],
            types=types,
            add_dummy_prefix=vocabulary.add_space_prefix is not False,
            bos=named.get("bos_token", "<s>"),
            eos=named.get("eos_token", "</s>"),
            pad=named.get("pad_token", "<pad>"),
        )
    )


def _unknown_id(vocabulary: GGUFVocabulary) -> int:
    """The token for unknown text. A sentencepiece model must have one; files often flag it CONTROL."""
    flagged = [i for i, kind in enumerate(vocabulary.types) if kind == PieceType.UNKNOWN]
    by_text = [i for i, text in enumerate(vocabulary.tokens) if text == "<unk>"]
    named = [vocabulary.ids["unk_token"]] if "unk_token" in vocabulary.ids else []
    for i in (*flagged, *by_text, *named, 0):
        if vocabulary.is_special(i):
            return i
    raise TokenizerError(f"The GGUF file's sentencepiece vocabulary has no token for unknown text. {USE_OVERRIDE}")


# tokenizer.json


def _word_split(vocabulary: GGUFVocabulary) -> WordSplit:
    if is_tekken({text: i for i, text in enumerate(vocabulary.tokens)}):
        # Regardless of the file: many were converted from tokenizer.json files with a wrong expression.
        return TEKKEN
    split = WORD_SPLITS.get(vocabulary.pre or "")
    if split is None:
        said = "does not say" if vocabulary.pre in (None, "", "default") else f"says {vocabulary.pre!r}, unknown to us,"
        raise TokenizerError(
            f"The GGUF file {said} how its vocabulary cuts texts into words (tokenizer.ggml.pre); implemented are "
            f"{', '.join(WORD_SPLITS)}. Guessing would give other tokens than the model was trained on. {USE_OVERRIDE}"
        )
    return split


def _byte_level_json(vocabulary: GGUFVocabulary, words: WordSplit, base: int, end: int) -> Json:
    if not vocabulary.merges:
        raise TokenizerError(f"The GGUF file's byte-level BPE vocabulary has no merges. {USE_OVERRIDE}")
    return {
        **_frame(vocabulary, end),
        "normalizer": None,
        "pre_tokenizer": words.pre_tokenizer(),
        "decoder": byte_level(),
        "model": {
            **_BPE,
            "unk_token": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": words.ignore_merges,
            **_vocab_and_merges(vocabulary, base, end),
        },
    }


def _byte_fallback_json(vocabulary: GGUFVocabulary, base: int, end: int, *, metaspace: bool = False) -> Json:
    unknown = _unknown_id(vocabulary)
    to_space = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    decoders: list[Json] = [to_space, {"type": "ByteFallback"}, {"type": "Fuse"}]
    normalizer: Json | None = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    words: Json | None = None
    if vocabulary.add_space_prefix is not False:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
        if metaspace:
            normalizer = None
            words = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": False}
        else:
            normalizer = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SPACE}, normalizer]}
    return {
        **_frame(vocabulary, end),
        "normalizer": normalizer,
        "pre_tokenizer": words,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            **_BPE,
            "unk_token": vocabulary.tokens[unknown],
            "fuse_unk": True,
            "byte_fallback": vocabulary.types.count(PieceType.BYTE) == 256,
            "ignore_merges": False,
            **_vocab_and_merges(vocabulary, max(base, unknown + 1), end),
        },
    }


def _has_turn_tokens(vocabulary: GGUFVocabulary) -> bool:
    """Whether there are control tokens beyond BOS, EOS and padding."""
    usual = {"<unk>", "<s>", "</s>", "<pad>", *_named(vocabulary).values()}
    return any(
        vocabulary.is_special(i) and text not in usual and not vocabulary.is_filler(i)
        for i, text in enumerate(vocabulary.tokens)
    )


_BPE: Json = {"type": "BPE", "dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}


def _frame(vocabulary: GGUFVocabulary, end: int) -> Json:
    added = (
        {"id": i, **_added(vocabulary, i)}
        for i in range(end)
        if vocabulary.types[i] not in (PieceType.NORMAL, PieceType.BYTE, PieceType.UNUSED)
    )
    return {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added)}


def _vocab_and_merges(vocabulary: GGUFVocabulary, base: int, end: int) -> Json:
    """Tokens that were added after all others are left out of the vocabulary, unless there are fillers between them."""
    if any(vocabulary.is_filler(i) for i in range(base, end)):
        base = end
    return {
        "vocab": {vocabulary.tokens[i]: i for i in range(base)},
        "merges": vocabulary.merges or [],
    }


# Both


def _added(vocabulary: GGUFVocabulary, token_id: int) -> Json:
    special = vocabulary.is_special(token_id) or vocabulary.is_filler(token_id)
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    return {"content": vocabulary.tokens[token_id], **flags, "special": special}


def _named(vocabulary: GGUFVocabulary) -> dict[str, str]:
    """Texts of bos_token and so on. Sentencepiece files need not name the usual ids."""
    usual = {"bos_token": 1, "eos_token": 2, "unk_token": 0} if vocabulary.model == "llama" else {}
    usual = {name: i for name, i in usual.items() if i < len(vocabulary.tokens) and vocabulary.is_special(i)}
    ids = {**usual, **vocabulary.ids}
    return {name: vocabulary.tokens[i] for name, i in ids.items()}


def _config(vocabulary: GGUFVocabulary, *, add_bos: bool, templates: Mapping[str, str]) -> Json:
    named = _named(vocabulary)
    more = [named.pop(name) for name in ("eot_token", "eom_token") if name in named]
    config: Json = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "add_bos_token": add_bos,
        "add_eos_token": vocabulary.add_eos is True,
        "clean_up_tokenization_spaces": False,
    }
    if more := [text for text in more if text not in named.values()]:
        config["additional_special_tokens"] = more
    templates = {name: text for name, text in templates.items() if is_jinja(text)}
    if templates:
        default_only = templates.keys() == {"default"}
        listed = [{"name": name, "template": text} for name, text in templates.items()]
        config["chat_template"] = templates["default"] if default_only else listed
    return config


def _begin_with(vocabulary: GGUFVocabulary, config: Json) -> Json | None:
    """The post-processor of tokenizer.json that adds BOS before a text; None where it is not wanted."""
    bos = config.get("bos_token")
    if bos is None or not config["add_bos_token"]:
        return None
    token = {"SpecialToken": {"id": bos, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    return {
        "type": "TemplateProcessing",
        "single": [token, first],
        "pair": [token, first, {"SpecialToken": {"id": bos, "type_id": 1}}, second],
        "special_tokens": {bos: {"id": bos, "ids": [vocabulary.tokens.index(bos)], "tokens": [bos]}},
    }


def _dump(data: Json, **options: Any) -> bytes:
    return (json.dumps(data, ensure_ascii=False, **options) + "\n").encode()
