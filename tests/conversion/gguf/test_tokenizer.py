"""Broken and unknown vocabularies in GGUF metadata, and tokenizers written out as the files of a folder."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.gguf.tokenizer import gguf_tokenizer, tokenizer_files
from conversion.gguf.vocabulary import read_vocabulary
from conversion.gguf.writing.from_tokenizer import tokenizer_to_gguf
from conversion.tokenizer.files import TokenizerError
from mistral_jax.tokenizer import load_tokenizer
from mistral_jax.tokenizer.gguf import tokenizer_from_gguf
from tests.mistral_jax.tokenizer.gguf_vocabularies import (
    BYTE,
    CONTROL,
    LLAMA,
    NORMAL,
    USER_DEFINED,
    Metadata,
    converted_sentencepiece,
    small,
    with_tokens,
)
from tests.mistral_jax.tokenizer.tokenizer_corpus import TEXTS, tokenizer

GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenizers"
DEMO = Path(__file__).parents[3] / "mistral_jax" / "hub" / "bundled" / "demo"


def byte_level() -> Metadata:
    return tokenizer_to_gguf(GOLDENS / "byte_level", vocab_size=481)


def llama(**changes: Any) -> Metadata:
    return small() | {LLAMA + key: value for key, value in changes.items()}


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({}, "no tokenizer .*--tok-model-id"),
        (llama(model="bert"), r"is 'bert' \(WordPiece, of BERT\); implemented are 'llama'"),
        (llama(model="t5"), r"'t5' \(sentencepiece unigram"),
        (llama(model="rwkv"), "'rwkv'"),
        (llama(model="whitespace"), "a kind that we do not know"),
        (llama(model=5), "model in the GGUF file is 5; expected a str"),
        (llama(tokens=[]), "lists no tokens"),
        (llama(tokens="abc"), "tokens in the GGUF file is no list"),
        (llama(tokens=["a", b"b"]), "is no UTF-8 text"),
        (llama(tokens=["a", "\ud800"]), "is no UTF-8 text"),
        (llama(tokens=small()[LLAMA + "tokens"][:-1]), "lists 265 tokens but 266 token_type"),
        (llama(scores=np.zeros(300, np.float32)), "lists 266 tokens but 300 scores"),
        (llama(scores=np.full(266, np.nan, np.float32)), "no finite number"),
        (llama(scores="high"), "scores in the GGUF file is no list of numbers"),
        (llama(token_type=np.full(266, 7, np.int32)), "values beyond 0 to 6"),
        (llama(token_type=np.array([["x"] * 266])), "no list of numbers"),
        (llama(bos_token_id=266), "bos_token_id is 266, outside the GGUF file's vocabulary of 266"),
        (llama(eos_token_id=-1), "eos_token_id is -1, outside"),
        (llama(eot_token_id="</s>"), "eot_token_id in the GGUF file is '</s>'; expected a int"),
        (llama(add_bos_token=1), "add_bos_token in the GGUF file is 1; expected a bool"),
        (llama(merges=["ab"]), "has 'ab', which is no pair"),
        (llama(merges=["a", ""]), "which is no pair"),
        (llama(token_type=np.array([2, 3, 3, *[BYTE] * 255, *[NORMAL] * 8], np.int32)), "has 255 byte tokens"),
        (llama(token_type=np.full(266, NORMAL, np.int32), bos_token_id=5), "no token for unknown text"),
        (small() | {"tokenizer.chat_template": 5}, "tokenizer.chat_template in the GGUF file is a int"),
        (
            byte_level() | {LLAMA + "pre": "default"},
            "does not say how its vocabulary cuts .* llama-bpe, .*--tok-model-id",
        ),
        (byte_level() | {LLAMA + "pre": "qwen2"}, "says 'qwen2', unknown to us,"),
        (byte_level() | {LLAMA + "merges": []}, "has no merges"),
    ],
)
def test_errors_say_what_is_wrong(metadata: Metadata, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        gguf_tokenizer(metadata)


def test_a_file_that_does_not_say_how_to_cut_words_is_refused() -> None:
    metadata = byte_level()
    del metadata[LLAMA + "pre"]
    with pytest.raises(TokenizerError, match="does not say how its vocabulary cuts texts into words"):
        gguf_tokenizer(metadata)


@pytest.mark.parametrize("name", ["llama3", "llama-v3", "llama-bpe", "falcon3", "pixtral", "lfm2"])
def test_names_for_the_same_words(name: str) -> None:
    assert (
        gguf_tokenizer(byte_level() | {LLAMA + "pre": name}).tokenizer_json
        == gguf_tokenizer(byte_level()).tokenizer_json
    )


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**33), 2**33),
    st.text(max_size=3),
    st.lists(st.text(max_size=3), max_size=4),
    st.sampled_from([np.zeros(266, np.float32), np.arange(266), np.zeros((2, 2)), np.float32(1), np.array(["a"])]),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted({*small(), *byte_level()})), VALUES, max_size=3), st.booleans())
def test_any_damage_is_noticed_or_harmless(damage: dict[str, Any], from_small: bool) -> None:
    logging.disable(logging.WARNING)
    try:
        ours = tokenizer_from_gguf((small() if from_small else byte_level()) | damage)
    except TokenizerError:
        return
    finally:
        logging.disable(logging.NOTSET)
    assert ours.vocab_size > 0


def test_user_defined_pieces_that_the_converter_wrote_as_normal_ones() -> None:
    types = read_vocabulary(converted_sentencepiece("v7")).types
    assert [i for i, kind in enumerate(types) if kind == USER_DEFINED] == list(range(749, 771))
    # Normal pieces before the bytes with scores of their own are normal.
    metadata = converted_sentencepiece("v7")
    scores = metadata[LLAMA + "scores"].copy()
    scores[750] = -3
    assert USER_DEFINED not in read_vocabulary(metadata | {LLAMA + "scores": scores}).types


# As the files of a folder.


def _write(folder: Path, metadata: Metadata) -> None:
    for name, data in tokenizer_files(metadata).items():
        (folder / name).write_bytes(data)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback", "demo"])
def test_a_folder_of_the_files_is_the_same_tokenizer(kind: str, tmp_path: Path) -> None:
    source = GOLDENS / kind if kind != "demo" else DEMO
    metadata = tokenizer_to_gguf(source, vocab_size=2048)
    _write(tmp_path, metadata)
    names = {"tokenizer.json", "tokenizer_config.json"} | ({"tokenizer.model"} if kind == "demo" else set())
    assert {path.name for path in tmp_path.iterdir()} == names
    ours, reference = load_tokenizer(tmp_path), load_tokenizer(source)
    for text in TEXTS:
        for at_start in (True, False):
            assert ours.encode(text, at_start=at_start) == reference.encode(text, at_start=at_start), text
    for name in ("vocab_size", "bos_id", "eos_id", "unk_id", "pad_id", "add_bos", "strips_leading_space"):
        assert getattr(ours, name) == getattr(reference, name), name
    assert ours.control_tokens == reference.control_tokens
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["chat_template"] == json.loads((source / "tokenizer_config.json").read_text())["chat_template"]
    # And back again.
    again = tokenizer_to_gguf(tmp_path, vocab_size=2048)
    assert again.keys() == metadata.keys()
    for key in metadata:
        if not key.endswith("scores"):
            assert np.array_equal(again[key], metadata[key]), key


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_both_files_of_a_sentencepiece_vocabulary_say_the_same(version: str, tmp_path: Path) -> None:
    _write(tmp_path, converted_sentencepiece(version))
    reference = tokenizer(version)
    model, data = load_tokenizer(tmp_path / "tokenizer.model"), load_tokenizer(tmp_path / "tokenizer.json")
    for text in TEXTS:
        assert model.encode(text) == reference.encode(text), text
        assert data.encode(text, at_start=False) == reference.encode(text, at_start=False), text
        if version == "v1" or not text.startswith((" ", "▁")):
            assert data.encode(text) == reference.encode(text), text
        if version == "v3":
            assert data.encode_after_control(text) == reference.encode_after_control(text.replace("▁", " ")), text


def test_special_tokens_and_templates_in_the_files(tmp_path: Path) -> None:
    metadata = with_tokens(small(), ("<|im_end|>", CONTROL), ("<think>", USER_DEFINED), ("<|eom_id|>", CONTROL)) | {
        LLAMA + "eot_token_id": 266,
        LLAMA + "add_bos_token": False,
        "tokenizer.chat_template": "{{ messages }}",
        "tokenizer.chat_template.tool_use": "{{ tools }}",
        "tokenizer.chat_templates": ["tool_use"],
    }
    config = json.loads(tokenizer_files(metadata)["tokenizer_config.json"])
    assert (config["bos_token"], config["eos_token"], config["unk_token"]) == ("<s>", "</s>", "<unk>")
    assert (config["add_bos_token"], config["additional_special_tokens"]) == (False, ["<|im_end|>"])
    assert {i: (t["content"], t["special"]) for i, t in config["added_tokens_decoder"].items()} == {
        "0": ("<unk>", True),
        "1": ("<s>", True),
        "2": ("</s>", True),
        "266": ("<|im_end|>", True),
        "267": ("<think>", False),
        "268": ("<|eom_id|>", True),
    }
    assert {entry["name"]: entry["template"] for entry in config["chat_template"]} == {
        "default": "{{ messages }}",
        "tool_use": "{{ tools }}",
    }
    assert "pad_token" not in config
    # The name of a format is no template.
    named = tokenizer_files(small() | {"tokenizer.chat_template": "mistral-v3"})["tokenizer_config.json"]
    assert "chat_template" not in json.loads(named)
