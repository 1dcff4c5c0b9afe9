"""HuggingFaceTokenizer against transformers (goldens), and against the other tokenizers on Mistral's vocabularies."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from mistral_common.tokens.tokenizers.tekken import Tekkenizer
from sentencepiece import SentencePieceProcessor

from mistral_jax.chat import load_chat_formatter
from mistral_jax.text.detokenizer import IncrementalDetokenizer
from mistral_jax.tokenizer import AddedToken, HuggingFaceTokenizer, SpecialTokens, TokenizerError, load_tokenizer
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.tokenizer.tokenizer_corpus import (
    LOOK_ALIKES,
    SENTENCEPIECE,
    TEKKEN,
    TEXTS,
    plain_text,
    tokenizer,
)

GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenizers"
KINDS = ("byte_level", "byte_fallback", "metaspace")
kinds = pytest.mark.parametrize("kind", KINDS)


@cache
def load(kind: str) -> HuggingFaceTokenizer:
    loaded = load_tokenizer(GOLDENS / kind)
    assert isinstance(loaded, HuggingFaceTokenizer)
    return loaded


def goldens(kind: str) -> dict[str, Any]:
    return json.loads((GOLDENS / kind / "goldens.json").read_text())


def parsed(kind: str) -> dict[str, Any]:
    return json.loads((GOLDENS / kind / "tokenizer.json").read_text())


@kinds
def test_texts_encode_and_decode_as_in_transformers(kind: str) -> None:
    ours = load(kind)
    for golden in goldens(kind)["texts"]:
        assert ours.encode(golden["text"]) == golden["ids"], golden["text"]
        assert ours.decode(golden["ids"]) == golden["decoded"]
        detokenizer = IncrementalDetokenizer(ours)
        assert "".join(map(detokenizer.push, golden["ids"])) + detokenizer.flush() == golden["decoded"]


@kinds
def test_conversations_render_and_encode_as_in_transformers(kind: str) -> None:
    formatter = load_chat_formatter(GOLDENS / kind, load(kind))
    assert formatter is not None
    for golden in goldens(kind)["chats"]:
        given_ = {"messages": golden["messages"], "tools": golden["tools"], "add_generation_prompt": golden["prompt"]}
        assert formatter.render(**given_) == golden["text"]
        assert formatter.encode(**given_) == golden["ids"]


@kinds
def test_conversations_cannot_forge_control_tokens(kind: str) -> None:
    formatter = load_chat_formatter(GOLDENS / kind, load(kind))
    assert formatter is not None
    control = load(kind).control_tokens
    forged = "".join(control)
    ids = formatter.encode([{"role": "user", "content": forged}])
    harmless = formatter.encode([{"role": "user", "content": "x"}])
    assert [i for i in ids if i in control.values()] == [i for i in harmless if i in control.values()]


@kinds
@settings(max_examples=80, deadline=None)
@given(text=plain_text)
def test_nothing_is_lost_and_nothing_is_a_control_token(kind: str, text: str) -> None:
    ours = load(kind)
    for at_start in (True, False):
        ids = ours.encode(text, at_start=at_start)
        assert set(ids).isdisjoint(ours.control_tokens.values())
        written = b"".join(map(ours.token_bytes, ids)).decode()
        expected = text.replace("▁", " ") if ours.strips_leading_space else text
        if kind == "metaspace" and at_start:
            assert written.removeprefix(" ") == expected.removeprefix(" ")
        else:
            assert written == (" " if ours.strips_leading_space and at_start and text else "") + expected


def test_properties() -> None:
    ours = load("byte_level")
    control = ours.control_tokens
    assert (ours.bos_id, ours.eos_id) == (control["<|begin_of_text|>"], control["<|eot_id|>"])
    assert (ours.unk_id, ours.pad_id, ours.add_bos, ours.strips_leading_space) == (None, None, True, False)
    assert "<think>" not in control  # not special: it is text, and appears in what the model says
    assert ours.decode(ours.encode("<think>")) == "<think>"
    assert len(ours.encode("<think>")) == 1
    ours = load("byte_fallback")
    assert (ours.bos_id, ours.eos_id, ours.unk_id, ours.pad_id) == (1, 2, 0, None)
    assert (ours.add_bos, ours.strips_leading_space) == (False, True)
    assert ours.token_text(3) == "<0x00>"
    with pytest.raises(IndexError):
        ours.token_bytes(ours.vocab_size)


def _sentencepiece_as_json(version: str) -> dict[str, Any]:
    """A sentencepiece vocabulary in the form of tokenizer.json: merges are the splits of each piece, best first."""
    source = tokenizer(version)
    scores = SentencePieceProcessor(model_file=str(SENTENCEPIECE[version]))
    pieces = [source.token_text(i) for i in range(source.vocab_size)]
    ids = {piece: i for i, piece in enumerate(pieces)}
    control = source.control_tokens
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(pieces, key=lambda piece: -scores.get_score(ids[piece]))
        if piece not in control and not piece.startswith("<0x")
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    prepend = [{"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "added_tokens": [{"id": i, "content": text, **flags} for text, i in control.items()],
        "normalizer": {"type": "Sequence", "normalizers": prepend},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "vocab": ids, "merges": merges, "byte_fallback": True, "unk_token": "<unk>"},
    }


def test_mistral_7bs_vocabulary_encodes_as_sentencepiece() -> None:
    ours, reference = HuggingFaceTokenizer(_sentencepiece_as_json("v1")), tokenizer("v1")
    assert ours.control_tokens == reference.control_tokens
    for text in TEXTS:
        for at_start in (True, False):
            assert ours.encode(text, at_start=at_start) == reference.encode(text, at_start=at_start), text
    for text in ("a" * 1_000_000, " " * 1_000_000):
        with cpu_seconds_at_most(10.0):
            assert ours.encode(text) == reference.encode(text)


def _tekken_as_json(pattern: str) -> dict[str, Any]:
    source = tokenizer("240718")
    size = 131072
    pieces = [source.token_text(i) for i in range(size)]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    ids = {piece: i for i, piece in enumerate(pieces)}
    merges = [(p[:c], p[c:]) for p in pieces[1000:] for c in range(1, len(p)) if p[:c] in ids and p[c:] in ids]
    return {
        "added_tokens": [{"id": i, "content": pieces[i], **flags} for i in range(1000)],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "decoder": to_bytes,
        "model": {"type": "BPE", "vocab": ids, "merges": merges, "ignore_merges": True},
    }


def test_the_broken_pattern_beside_tekken_vocabularies_is_repaired() -> None:
    wrong = r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ours = HuggingFaceTokenizer(_tekken_as_json(wrong))
    reference = Tekkenizer.from_file(TEKKEN["240718"])
    for text in (*TEXTS, "CamelCaseWord 1234567 it's //\n"):
        assert ours.encode(text) == reference.encode(text, bos=False, eos=False), text
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (131072, 1, 2)
    for text in LOOK_ALIKES:
        assert len(ours.encode(text)) > 1


def test_side_files_add_and_flag_tokens(tmp_path: Path) -> None:
    data = parsed("byte_level")
    size = max(token["id"] for token in data["added_tokens"]) + 1
    config = {
        "bos_token": None,
        "eos_token": {"content": "<|im_end|>"},
        "pad_token": "<absent>",
        "add_bos_token": True,
        "additional_special_tokens": ["<think>"],
        "added_tokens_decoder": {str(size): {"content": "<|im_end|>", "special": True}},
    }
    for name, content in (
        ("tokenizer.json", data),
        ("tokenizer_config.json", config),
        ("added_tokens.json", {"<|im_end|>": size, "<tool>": size + 1}),
    ):
        (tmp_path / name).write_text(json.dumps(content))
    ours = load_tokenizer(tmp_path)
    assert (ours.bos_id, ours.add_bos, ours.eos_id, ours.pad_id) == (None, False, size, None)
    assert ours.vocab_size == size + 2
    assert {"<think>", "<|im_end|>"} <= ours.control_tokens.keys()
    assert ours.decode(ours.encode("<think><|im_end|><tool>")) == "<think><|im_end|><tool>"
    assert ours.encode("<tool>") == [size + 1]
    assert size not in ours.encode("<|im_end|>")


def test_merges_to_a_control_token_are_undone() -> None:
    data = parsed("byte_level")
    hello = next(piece for piece in data["model"]["vocab"] if piece == "Hello" or len(piece) > 4)
    special = SpecialTokens(others=frozenset({hello}))
    ours = HuggingFaceTokenizer(data, special=special)
    text = hello.replace("Ġ", " ")
    assert ours.control_tokens[hello] not in ours.encode(text * 2)
    assert ours.decode(ours.encode(text * 2)) == text * 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"type": "WordPiece", "vocab": {"a": 0}}}, "only BPE is implemented"),
        ({"added_tokens": [{"id": 1}]}, "a form that we do not know"),
        ({"model": {}}, "no tokenizer.json with a BPE vocabulary"),
        ({"model": {"type": "BPE", "vocab": [["a", 0.0]]}}, "no tokenizer.json with a BPE vocabulary"),
        ({"pre_tokenizer": None, "decoder": None}, "neither byte-level BPE nor"),
        (
            {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["b", "c"]]}},
            "cannot be used by the tokenizers library",
        ),
    ],
)
def test_errors_say_what_is_wrong(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        HuggingFaceTokenizer(parsed("byte_level") | change)


def test_files_of_different_models_are_noticed() -> None:
    special = SpecialTokens(added=(AddedToken(id=5000, text="<x>", special=True),))
    with pytest.raises(TokenizerError, match="should have id 5000"):
        HuggingFaceTokenizer(parsed("byte_level"), special=special)
    with pytest.raises(TokenizerError, match="as eos_token"):
        HuggingFaceTokenizer(parsed("byte_level"), special=SpecialTokens(names={"eos_token": "<|absent|>"}))
