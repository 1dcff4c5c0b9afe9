"""GGUF metadata from the tokenizer files of a folder, against what llama.cpp's converter writes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversion.gguf.writing.from_tokenizer import tokenizer_to_gguf
from conversion.tokenizer.files import TokenizerError
from tests.mistral_jax.tokenizer.gguf_vocabularies import (
    CONTROL,
    LLAMA,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    converted_sentencepiece,
    converted_tekken,
    written,
)
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE, TEKKEN

GOLDENS = Path(__file__).parents[3] / "goldens" / "tokenizers"
DEMO = Path(__file__).parents[4] / "mistral_jax" / "hub" / "bundled" / "demo"


def _put(folder: Path, **files: Any) -> None:
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.mark.parametrize("version", SENTENCEPIECE)
def test_sentencepiece_as_llama_cpps_converter(version: str, tmp_path: Path) -> None:
    ours, theirs = written(version, tmp_path), converted_sentencepiece(version)
    for key in ("model", "pre", "tokens", "bos_token_id", "eos_token_id"):
        assert ours[LLAMA + key] == theirs[LLAMA + key], key
    assert np.array_equal(ours[LLAMA + "scores"], theirs[LLAMA + "scores"])
    assert ours[LLAMA + "scores"].dtype == np.float32
    assert ours[LLAMA + "token_type"].dtype == np.int32
    # The converter loses the user-defined pieces.
    differ = ours[LLAMA + "token_type"] != theirs[LLAMA + "token_type"]
    assert differ.sum() == {"v1": 0, "v2": 0, "v3": 20, "v7": 22}[version]
    assert set(ours[LLAMA + "token_type"][differ]) <= {USER_DEFINED}
    rest = {key.removeprefix(LLAMA): value for key, value in ours.items() if key not in theirs}
    template = {"tokenizer.chat_template": f"mistral-{version}"} if version != "v2" else {}
    flags = {"add_space_prefix": True, "add_bos_token": True, "add_eos_token": False, "unknown_token_id": 0}
    assert rest == flags | template


def test_tekken_as_llama_cpps_converter(tmp_path: Path) -> None:
    ours, theirs = written("240718", tmp_path), converted_tekken("240718")
    assert theirs.keys() - ours.keys() == {"general.architecture", LLAMA + "scores"}
    for key, value in ours.items():
        assert np.array_equal(value, theirs[key]), key


def test_a_byte_level_vocabulary() -> None:
    data = json.loads((GOLDENS / "byte_level" / "tokenizer.json").read_text())
    ours = tokenizer_to_gguf(GOLDENS / "byte_level", vocab_size=484)
    pieces = sorted(data["model"]["vocab"], key=data["model"]["vocab"].__getitem__)
    added = ["<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>", "<think>"]
    fillers = ["[PAD481]", "[PAD482]", "[PAD483]"]
    assert ours[LLAMA + "tokens"] == [*pieces, *added, *fillers]
    types = [*[NORMAL] * 476, *[CONTROL] * 4, USER_DEFINED, *[UNUSED] * 3]
    assert ours[LLAMA + "token_type"].tolist() == types
    assert ours[LLAMA + "merges"] == [" ".join(pair) for pair in data["model"]["merges"]]
    assert LLAMA + "scores" not in ours
    assert (ours[LLAMA + "bos_token_id"], ours[LLAMA + "eos_token_id"], ours[LLAMA + "add_bos_token"]) == (
        476,
        477,
        True,
    )
    config = json.loads((GOLDENS / "byte_level" / "tokenizer_config.json").read_text())
    assert ours["tokenizer.chat_template"] == config["chat_template"]


def test_scores_come_from_tokenizer_model_if_it_is_the_same_tokenizer(tmp_path: Path) -> None:
    both = tokenizer_to_gguf(DEMO, vocab_size=2048)
    assert both[LLAMA + "add_space_prefix"] is False
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(DEMO / name, tmp_path)
    alone = tokenizer_to_gguf(tmp_path, vocab_size=2048)
    assert alone.keys() == both.keys()
    for key, value in both.items():
        if key != LLAMA + "scores":
            assert np.array_equal(alone[key], value), key
    # Different numbers, but the same order of all pieces that come of merges.
    types = both[LLAMA + "token_type"]
    merged = [i for i, text in enumerate(both[LLAMA + "tokens"]) if len(text) > 1 and types[i] == NORMAL]
    order = [sorted(merged, key=lambda i, scores=m[LLAMA + "scores"]: -scores[i]) for m in (both, alone)]
    assert order[0] == order[1]
    # A model with other pieces is not that of the tokenizer.json beside it.
    shutil.copy(SENTENCEPIECE["v1"], tmp_path / "tokenizer.model")
    assert len(tokenizer_to_gguf(tmp_path, vocab_size=2048)[LLAMA + "tokens"]) == 2048


def test_merges_are_kept_where_scores_say_less(caplog: pytest.LogCaptureFixture) -> None:
    data = json.loads((GOLDENS / "byte_fallback" / "tokenizer.json").read_text())
    ours = tokenizer_to_gguf(GOLDENS / "byte_fallback", vocab_size=600)
    assert ours[LLAMA + "merges"] == [" ".join(pair) for pair in data["model"]["merges"]]
    assert "not in the order of scores" in caplog.text
    tokens, scores = ours[LLAMA + "tokens"], ours[LLAMA + "scores"]
    assert [scores[tokens.index("".join(pair))] for pair in data["model"]["merges"][:3]] == [0, -1, -2]


def test_added_tokens_and_gaps_between_them(tmp_path: Path) -> None:
    shutil.copy(SENTENCEPIECE["v1"], tmp_path / "tokenizer.model")
    decoder = {"1": {"content": "<s>", "special": True}, "32002": {"content": "<think>", "special": False}}
    config = {"eos_token": "<|im_end|>", "pad_token": None, "added_tokens_decoder": decoder, "add_bos_token": False}
    _put(tmp_path, tokenizer_config=config, added_tokens={"<|im_end|>": 32000})
    ours = tokenizer_to_gguf(tmp_path, vocab_size=32064)
    assert ours[LLAMA + "tokens"][31999:32005] == [
        "梦",
        "<|im_end|>",
        "[PAD32001]",
        "<think>",
        "[PAD32003]",
        "[PAD32004]",
    ]
    types = [NORMAL, CONTROL, UNUSED, USER_DEFINED, UNUSED, UNUSED]
    assert ours[LLAMA + "token_type"][31999:32005].tolist() == types
    assert ours[LLAMA + "scores"][32000:32004].tolist() == [-1000, -10000, -1000, -10000]
    assert (ours[LLAMA + "eos_token_id"], ours[LLAMA + "add_bos_token"]) == (32000, False)
    assert LLAMA + "padding_token_id" not in ours
    assert len(ours[LLAMA + "tokens"]) == len(ours[LLAMA + "scores"]) == len(ours[LLAMA + "token_type"]) == 32064


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        (477, {}),
        ([477], {}),
        ([477, 478], {"eot": 478}),
        ([476, 480, 477], {"eot": 476, "eom": 480}),
        ([480, 476, 477], {"eot": 476, "eom": 480}),
        ([480, 477], {"eom": 480}),
        ([477, 5000], {}),
        ([477, 476, 478, 479], {"eot": 476, "eom": 478}),
    ],
)
def test_further_ends_of_an_answer(
    listed: Any, expected: dict[str, int], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = json.loads((GOLDENS / "byte_level" / "tokenizer.json").read_text())
    data["added_tokens"][-1] |= {"content": "<|eom_id|>", "special": True}
    _put(
        tmp_path,
        tokenizer=data,
        tokenizer_config={"eos_token": "<|eot_id|>"},
        generation_config={"eos_token_id": listed},
    )
    ours = tokenizer_to_gguf(tmp_path, vocab_size=481)
    found = {name: ours[key] for name in ("eot", "eom") if (key := f"{LLAMA}{name}_token_id") in ours}
    assert (ours[LLAMA + "eos_token_id"], found) == (477, expected)
    assert ("[479] are left out" in caplog.text) == (listed == [477, 476, 478, 479])


def test_named_templates(tmp_path: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(GOLDENS / "byte_level" / name, tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ a }}")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool-use.jinja").write_text("{{ b }}")
    ours = tokenizer_to_gguf(tmp_path, vocab_size=481)
    assert {key: value for key, value in ours.items() if "chat_template" in key} == {
        "tokenizer.chat_template": "{{ a }}",
        "tokenizer.chat_template.tool_use": "{{ b }}",
        "tokenizer.chat_templates": ["tool_use"],
    }


def test_tekken_wins_and_names_its_format(tmp_path: Path) -> None:
    shutil.copy(GOLDENS / "byte_level" / "tokenizer.json", tmp_path)
    data = json.loads(TEKKEN["240911"].read_bytes())
    data["config"] |= {"default_vocab_size": 2000}
    data["vocab"] = data["vocab"][:1000]
    _put(tmp_path, tekken=data)
    ours = tokenizer_to_gguf(tmp_path, vocab_size=2000)
    assert (ours[LLAMA + "pre"], ours["tokenizer.chat_template"]) == ("tekken", "mistral-v3-tekken")


def _json(**changes: Any) -> dict[str, Any]:
    return json.loads((GOLDENS / "byte_level" / "tokenizer.json").read_text()) | changes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            _json(pre_tokenizer={"type": "ByteLevel", "use_regex": True}),
            "know no name .* llama-bpe, smaug-bpe, tekken, smollm",
        ),
        (_json(pre_tokenizer=None), "know no name"),
        (_json(normalizer={"type": "NFC"}), "or normalises them"),
        (_json(model={"type": "Unigram", "vocab": {"a": 0}, "merges": []}), "holds a Unigram vocabulary"),
        (_json(model={"type": "BPE"}), "a form that we do not know"),
        (_json(added_tokens=[{"id": 1}]), "a form that we do not know"),
        (
            _json(added_tokens=[{"id": 481, "content": "<a>"}, {"id": 482, "content": "<b>"}]),
            "has 483 tokens and the model 482",
        ),
    ],
)
def test_errors_say_what_is_wrong(data: dict[str, Any], message: str, tmp_path: Path) -> None:
    _put(tmp_path, tokenizer=data)
    with pytest.raises(TokenizerError, match=message):
        tokenizer_to_gguf(tmp_path, vocab_size=482)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="has no tokenizer"):
        tokenizer_to_gguf(tmp_path, vocab_size=10)
    unigram = SENTENCEPIECE["v1"].read_bytes() + b"\x12\x02\x18\x01"  # a second trainer_spec: model_type = UNIGRAM
    (tmp_path / "tokenizer.model").write_bytes(unigram)
    with pytest.raises(TokenizerError, match="another kind than BPE"):
        tokenizer_to_gguf(tmp_path, vocab_size=32000)
    (tmp_path / "tekken.json").write_text(json.dumps({"config": {}}))
    with pytest.raises(TokenizerError, match="version is missing"):
        tokenizer_to_gguf(tmp_path, vocab_size=10)
