"""The tokenizer of a model folder as GGUF metadata, so that llama.cpp produces the same tokens.

Follows llama.cpp's converter (convert_hf_to_gguf.py) where that is correct. It differs where the converter loses
information: user-defined pieces of sentencepiece models stay user-defined, vocabularies in tokenizer.json with byte
fallback get real scores instead of placeholders, and `add_bos_token` and further end-of-generation tokens are always
written.
"""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from conversion.gguf.vocabulary import PREFIX
from conversion.tokenizer.chat_templates import MISTRAL_FORMATS, read_chat_templates
from conversion.tokenizer.files import (
    TokenizerError,
    find_sentencepiece,
    find_tokenizer_file,
    known_form,
    read_json_object,
)
from conversion.tokenizer.folder_vocabulary import PADDING_SCORE, NewVocabulary, from_sentencepiece, from_tekken
from conversion.tokenizer.json_vocabulary import added_tokens, adds_prefix, begins_with_special, from_tokenizer_json
from conversion.tokenizer.sentencepiece_model import BPE, PieceType, SentencePieceModel, parse_sentencepiece, read_model
from conversion.tokenizer.special_tokens import SpecialTokens, read_special_tokens
from conversion.tokenizer.tekken_file import read_tekken
from conversion.tokenizer.word_splits import TEKKEN

type Json = dict[str, Any]

_log = logging.getLogger(__name__)

_LLAMA_CPP_FORMATS = {(version, "tekken" in name): name for name, version in MISTRAL_FORMATS.items()}
_ID_KEYS = {"bos": "bos_token_id", "eos": "eos_token_id", "unk": "unknown_token_id", "pad": "padding_token_id"}


def tokenizer_to_gguf(folder: Path, *, vocab_size: int) -> dict[str, Any]:
    """The keys `tokenizer.*` of a GGUF file with the tokenizer and the chat templates of a model folder.

    Args:
      folder: With tekken.json, tokenizer.model or tokenizer.json; their side files are read where they are.
      vocab_size: Rows of the model's embedding; unused tokens fill the vocabulary up to it.

    Returns:
      Values by key, as `GGUFFile.metadata` has them. Texts are str, lists of texts list[str]; ids are non-negative ints
      (uint32), flags bool, scores a float32 array and token types an int32 array.

    Raises:
      TokenizerError: there is no tokenizer, it is of a kind that GGUF files or we do not support, or it has more than
        `vocab_size` tokens.
    """
    special = read_special_tokens(folder)
    vocabulary = _read(folder, special)
    size = len(vocabulary.texts)
    if size > vocab_size:
        raise TokenizerError(
            f"The tokenizer in {folder} has {size} tokens and the model {vocab_size}: they do not belong together."
        )
    texts = vocabulary.texts + [f"[PAD{i}]" for i in range(size, vocab_size)]
    types = vocabulary.types + [PieceType.UNUSED] * (vocab_size - size)
    metadata: Json = {
        "model": vocabulary.model,
        "pre": vocabulary.pre,
        "tokens": texts,
        "token_type": np.array(types, np.int32),
    }
    if vocabulary.model == "llama":
        scores = vocabulary.scores + [PADDING_SCORE] * (vocab_size - size)
        metadata["scores"] = np.array(scores, np.float32)
        metadata["add_space_prefix"] = vocabulary.add_space_prefix is not False
    if vocabulary.merges is not None:
        metadata["merges"] = [f"{left} {right}" for left, right in vocabulary.merges]
    metadata |= (ids := _ids(folder, vocabulary, special))
    metadata["add_bos_token"] = vocabulary.add_bos and "bos_token_id" in ids
    metadata["add_eos_token"] = False
    return {PREFIX + key: value for key, value in metadata.items()} | _templates(folder, vocabulary)


def _read(folder: Path, special: SpecialTokens) -> NewVocabulary:
    path = find_tokenizer_file(folder)
    if path.suffix == ".json" and ("tekken" in path.name or "config" in read_json_object(path, vocabulary=True)):
        return from_tekken(read_tekken(path), special, str(path))
    data = read_json_object(path, vocabulary=True) if path.suffix == ".json" else None
    model = find_sentencepiece(folder)
    if model is not None:
        parsed = parse_sentencepiece(read_model(model), str(model))
        if data is None:
            prefix = read_json_object(folder / "tokenizer_config.json", missing_ok=True).get("add_prefix_space")
            vocabulary = from_sentencepiece(parsed, special, model)
            vocabulary.add_space_prefix = prefix if isinstance(prefix, bool) else parsed.add_dummy_prefix
            return vocabulary
        if parsed.model_type == BPE and _same_vocabulary(parsed, data):
            # Real scores are better than merges; everything else is taken from tokenizer.json, as it is used.
            with known_form(str(path)):
                added = added_tokens(data, special)
                prefix, add_bos = adds_prefix(data), begins_with_special(data)
            vocabulary = from_sentencepiece(parsed, replace(special, added=added), model)
            vocabulary.add_space_prefix = prefix
            if special.add_bos is None:
                vocabulary.add_bos = add_bos
            return vocabulary
    assert data is not None
    return from_tokenizer_json(data, special, str(path))


def _same_vocabulary(model: SentencePieceModel, data: Json) -> bool:
    inner: Any = data.get("model")
    vocab: Any = cast("Json", inner).get("vocab") if isinstance(inner, dict) else None
    return (
        isinstance(vocab, dict)
        and all(cast("Json", vocab).get(text, i) == i for i, text in enumerate(model.texts))
        and model.texts[-1] in vocab
    )


def _ids(folder: Path, vocabulary: NewVocabulary, special: SpecialTokens) -> Json:
    """The keys for special ids: named tokens, and further end-of-generation tokens from generation_config.json."""
    id_of = {text: i for i, text in enumerate(vocabulary.texts)}
    found: dict[str, int] = {}
    for name in _ID_KEYS:
        token_id = special.name_id(f"{name}_token", id_of, vocabulary.ids.get(name))
        if token_id is not None:
            found[name] = token_id
    ids = {_ID_KEYS[name]: token_id for name, token_id in found.items()}
    ends = [i for i in _eos_ids(folder) if i < len(vocabulary.texts) and i != found.get("eos")]
    if ends and "eos" not in found:
        ids["eos_token_id"] = ends.pop(0)
    messages = [i for i in ends if vocabulary.texts[i] == "<|eom_id|>"]
    ends = [i for i in ends if i not in messages] + messages
    for key in ("eot_token_id", "eom_token_id"):
        if ends and (key == "eom_token_id" or ends[0] not in messages):
            ids[key] = ends.pop(0)
    if ends:
        _log.warning("GGUF files have room for three tokens that end an answer: %s are left out", ends)
    return ids


def _eos_ids(folder: Path) -> list[int]:
    """All ids that end generation, in the order of the files."""
    ids: list[int] = []
    for name in ("config.json", "generation_config.json"):
        value = read_json_object(folder / name, missing_ok=True).get("eos_token_id")
        listed = cast("list[Any]", value) if isinstance(value, list) else [value]
        ids += [i for i in listed if type(i) is int and i >= 0]
    return list(dict.fromkeys(ids))


def _templates(folder: Path, vocabulary: NewVocabulary) -> Json:
    templates = read_chat_templates(folder)
    if templates is None:
        # llama.cpp has its own names of Mistral's formats.
        name = _LLAMA_CPP_FORMATS.get((vocabulary.version or "", vocabulary.pre == TEKKEN.name))
        return {} if name is None else {"tokenizer.chat_template": name}
    named = {"default": templates} if isinstance(templates, str) else templates
    named = {re.sub("[^A-Za-z0-9]", "_", name): text for name, text in named.items()}
    keys: Json = {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != "default"}
    if keys:
        keys["tokenizer.chat_templates"] = [name for name in named if name != "default"]
    if "default" in named:
        keys["tokenizer.chat_template"] = named["default"]
    return keys
