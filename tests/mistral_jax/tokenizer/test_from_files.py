"""Which file of a folder is taken for the tokenizer, and what is said when there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mistral_jax.tokenizer import (
    HuggingFaceTokenizer,
    SentencePieceTokenizer,
    TekkenTokenizer,
    TokenizerError,
    load_tokenizer,
)
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE, write_small_tekken

JSON = Path(__file__).parents[2] / "goldens" / "tokenizers" / "byte_level" / "tokenizer.json"


def test_a_folder_with_several_tokenizers(tmp_path: Path) -> None:
    shutil.copy(SENTENCEPIECE["v1"], tmp_path / "tokenizer.model")
    plain = load_tokenizer(tmp_path)
    assert isinstance(plain, SentencePieceTokenizer)
    assert (plain.vocab_size, plain.instruct_version) == (32000, None)
    shutil.copy(SENTENCEPIECE["v3"], tmp_path / "tokenizer.model.v3")
    shutil.copy(SENTENCEPIECE["v2"], tmp_path / "tokenizer.model.v2")
    versioned = load_tokenizer(tmp_path)
    assert isinstance(versioned, SentencePieceTokenizer)
    assert versioned.instruct_version == "v3"
    shutil.copy(JSON, tmp_path / "tokenizer.json")
    assert isinstance(load_tokenizer(tmp_path), HuggingFaceTokenizer)
    write_small_tekken(tmp_path / "tekken.json", "v3")
    assert isinstance(load_tokenizer(tmp_path), TekkenTokenizer)


def test_a_single_file(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False, "pad_token": "</s>"}))
    shutil.copy(SENTENCEPIECE["v7"], tmp_path / "mistral.model.v7m1")
    loaded = load_tokenizer(tmp_path / "mistral.model.v7m1")
    assert (loaded.instruct_version, loaded.add_bos, loaded.pad_id) == ("v7", False, 2)
    write_small_tekken(tmp_path / "vocabulary.json", "v7")
    assert isinstance(load_tokenizer(tmp_path / "vocabulary.json"), TekkenTokenizer)


def test_errors_say_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="no such file or folder"):
        load_tokenizer(tmp_path / "absent")
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(TokenizerError, match=r"none of tekken.json, tokenizer.json .* \(model.safetensors\)"):
        load_tokenizer(tmp_path)
    with pytest.raises(TokenizerError, match="no name of a tokenizer file"):
        load_tokenizer(tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes(JSON.read_bytes()[:500])
    with pytest.raises(TokenizerError, match="cut short"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("[]")
    with pytest.raises(TokenizerError, match="expected"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "config",
    [
        {"bos_token": 5},
        {"added_tokens_decoder": {"x": {"content": "<x>"}}},
        {"added_tokens_decoder": {"3": {"content": 7}}},
        {"added_tokens_decoder": [1]},
        {"additional_special_tokens": 5},
    ],
)
def test_broken_side_files_are_refused(tmp_path: Path, config: dict[str, object]) -> None:
    shutil.copy(JSON, tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TokenizerError):
        load_tokenizer(tmp_path)
