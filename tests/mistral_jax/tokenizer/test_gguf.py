"""Tokenizers from GGUF metadata against the originals: sentencepiece, mistral-common, and goldens of transformers."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from sentencepiece import SentencePieceProcessor

from conversion.gguf.writing.from_tokenizer import tokenizer_to_gguf
from conversion.tokenizer.bpe_merges import merges_from_scores
from mistral_jax.tokenizer import HuggingFaceTokenizer, TokenizerError, load_tokenizer
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.gguf import check_same_tokens, end_of_generation_ids, tokenizer_from_gguf
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.tokenizer.gguf_vocabularies import (
    BYTE,
    CONTROL,
    LLAMA,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    Metadata,
    converted_sentencepiece,
    converted_tekken,
    small,
    tekkenizer,
    with_tokens,
    written,
)
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE, TEKKEN, TEXTS, plain_text, tokenizer

GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenizers"
# User-defined pieces of Mistral's versions 3 and 7: text that is matched as a whole.
MORE = ("see [REFERENCE_DOC_1] and [REFERENCE_DOC_19].", "[REF]a[/REF]", "[REFERENCE_DOC_7]x")


@pytest.fixture(scope="module")
def metadata_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Metadata by (file, who wrote it)."""

    @cache
    def folder(name: str) -> Path:
        return tmp_path_factory.mktemp(name)

    def make(name: str, writer: str) -> Metadata:
        if writer == "ours":
            return written(name, folder(name))
        return converted_tekken(name) if name in TEKKEN else converted_sentencepiece(name)

    return make


@cache
def _built(name: str, writer: str, make: Any) -> ByteTableTokenizer:
    return tokenizer_from_gguf(make(name, writer))


@pytest.mark.parametrize("writer", ["llama.cpp", "ours"])
@pytest.mark.parametrize("version", SENTENCEPIECE)
def test_sentencepiece_vocabularies_encode_as_the_original(version: str, writer: str, metadata_of: Any) -> None:
    ours, reference = _built(version, writer, metadata_of), tokenizer(version)
    model = SentencePieceProcessor(model_file=str(SENTENCEPIECE[version]))
    for text in (*TEXTS, *MORE):
        assert ours.encode(text) == model.encode(text), text
        assert ours.encode(text, at_start=False) == reference.encode(text, at_start=False), text
        assert ours.encode_after_control(text) == reference.encode_after_control(text), text
    _same_tables(ours, reference)
    assert ours.instruct_version == (None if version == "v1" else version)


@settings(max_examples=60, deadline=None)
@given(text=plain_text)
def test_any_text_encodes_as_sentencepiece(text: str) -> None:
    assert _v3().encode(text) == tokenizer("v3").encode(text)


@cache
def _v3() -> ByteTableTokenizer:
    return tokenizer_from_gguf(converted_sentencepiece("v3"))


def test_tekken_vocabularies_encode_as_mistral_common() -> None:
    metadata = converted_tekken("240718")
    with cpu_seconds_at_most(5.0):
        ours = tokenizer_from_gguf(metadata)
    _encodes_as_mistral_common(ours, "240718")


def test_a_tekken_vocabulary_is_cut_as_tekken_whatever_the_file_says(metadata_of: Any) -> None:
    metadata = metadata_of("240911", "ours")
    assert metadata[LLAMA + "pre"] == "tekken"
    _encodes_as_mistral_common(tokenizer_from_gguf(metadata | {LLAMA + "pre": "pixtral"}), "240911")


def _encodes_as_mistral_common(ours: ByteTableTokenizer, name: str) -> None:
    reference = tekkenizer(name)
    for text in (*TEXTS, *MORE, "CamelCaseWord 1234567 it's //\n"):
        ids = reference.encode(text, bos=False, eos=False)
        assert ours.encode(text) == ours.encode(text, at_start=False) == ours.encode_after_control(text) == ids, text
    _same_tables(ours, tokenizer(name))


def _same_tables(ours: ByteTableTokenizer, reference: ByteTableTokenizer) -> None:
    for name in (
        "vocab_size",
        "bos_id",
        "eos_id",
        "unk_id",
        "pad_id",
        "add_bos",
        "strips_leading_space",
        "control_tokens",
    ):
        assert getattr(ours, name) == getattr(reference, name), name
    size = range(ours.vocab_size)
    assert [ours.token_bytes(i) for i in size] == [reference.token_bytes(i) for i in size]
    assert [ours.token_text(i) for i in size] == [reference.token_text(i) for i in size]


def test_building_a_vocabulary_of_32768_pieces_takes_no_time() -> None:
    metadata = converted_sentencepiece("v3")
    with cpu_seconds_at_most(2.0):
        tokenizer_from_gguf(metadata)


@pytest.mark.parametrize("kind", ["byte_level", "byte_fallback"])
def test_small_vocabularies_encode_as_in_transformers(kind: str) -> None:
    metadata = tokenizer_to_gguf(GOLDENS / kind, vocab_size=600)
    assert metadata[LLAMA + "pre"] == {"byte_level": "llama-bpe", "byte_fallback": "default"}[kind]
    ours = tokenizer_from_gguf(metadata)
    for golden in json.loads((GOLDENS / kind / "goldens.json").read_text())["texts"]:
        assert ours.encode(golden["text"]) == golden["ids"], golden["text"]
        assert ours.decode(golden["ids"]) == golden["decoded"]
    _same_tables(ours, load_tokenizer(GOLDENS / kind))
    assert ours.decode(ours.encode("<think>")) == "<think>"


def test_words_of_smollm_are_those_of_its_own_pipeline(tmp_path: Path) -> None:
    data = json.loads((GOLDENS / "byte_level" / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    words = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    data["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, words]}
    data["model"]["ignore_merges"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    metadata = tokenizer_to_gguf(tmp_path, vocab_size=481)
    assert metadata[LLAMA + "pre"] == "smollm"
    ours, reference = tokenizer_from_gguf(metadata), HuggingFaceTokenizer(data)
    for text in TEXTS:
        assert ours.encode(text) == reference.encode(text), text


# Which tokens are text, which are control tokens, and which are nothing.


def test_added_tokens() -> None:
    metadata = with_tokens(
        small(),
        ("<|im_end|>", USER_DEFINED),
        ("<think>", USER_DEFINED),
        ("[PAD268]", UNUSED),
        ("[TOOL]", CONTROL),
        ("[PAD270]", UNUSED),
    )
    ours = tokenizer_from_gguf(metadata)
    assert ours.vocab_size == 270  # fillers at the end are no tokens
    assert ours.control_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 266, "[PAD268]": 268, "[TOOL]": 269}
    a, space, c = ours.encode("a", at_start=False)[0], 262, 265
    assert (a, ours.encode("c", at_start=False)) == (263, [c])
    assert ours.encode("a<think>c") == [space, a, 267, c]
    assert ours.encode("<think>c") == [267, c]  # no dummy prefix before a whole token, as in Hugging Face's tokenizers
    assert {266, 269}.isdisjoint(ours.encode("a<|im_end|>[TOOL]"))
    assert ours.decode([259, 267, 266, 269, 265]) == "ab<think>c"


def test_special_ids_that_the_file_names() -> None:
    named = {"eos_token_id": 266, "eot_token_id": 267, "padding_token_id": 0}
    metadata = with_tokens(small(), ("[END]", NORMAL), ("[TURN]", USER_DEFINED)) | {
        LLAMA + k: v for k, v in named.items()
    }
    ours = tokenizer_from_gguf(metadata)
    assert (ours.bos_id, ours.eos_id, ours.pad_id) == (1, 266, 0)
    assert ours.control_tokens.keys() == {"<unk>", "<s>", "</s>", "[END]", "[TURN]"}
    assert end_of_generation_ids(metadata, ours) == {266, 267}


def test_ordinary_tokens_and_ids_beyond_the_vocabulary_are_no_padding(caplog: pytest.LogCaptureFixture) -> None:
    for padding in (263, 4294967295):
        ours = tokenizer_from_gguf(small() | {LLAMA + "padding_token_id": padding})
        assert ours.pad_id is None
        assert ours.decode(ours.encode("abca")) == "abca"
    assert "padding_token_id is 4294967295, outside" in caplog.text


def test_flags_and_their_defaults() -> None:
    ours = tokenizer_from_gguf(small())
    assert (ours.add_bos, ours.strips_leading_space, ours.encode("ab")) == (True, True, [260])
    ours = tokenizer_from_gguf(small() | {LLAMA + "add_bos_token": False, LLAMA + "add_space_prefix": False})
    assert (ours.add_bos, ours.strips_leading_space, ours.encode("ab")) == (False, False, [259])
    llama3 = tokenizer_to_gguf(GOLDENS / "byte_level", vocab_size=481)
    without = {key: value for key, value in llama3.items() if "add_bos" not in key}
    assert tokenizer_from_gguf(without).add_bos
    assert not tokenizer_from_gguf(without | {LLAMA + "pre": "smollm"}).add_bos


def test_types_are_guessed_where_a_file_has_none() -> None:
    metadata = small()
    del metadata[LLAMA + "token_type"]
    _same_tables(tokenizer_from_gguf(metadata), tokenizer_from_gguf(small()))


def test_an_unknown_token_flagged_as_control() -> None:
    metadata = small()
    types = metadata[LLAMA + "token_type"].copy()
    types[0] = CONTROL
    _same_tables(tokenizer_from_gguf(metadata | {LLAMA + "token_type": types}), tokenizer_from_gguf(small()))


def test_tokens_that_are_listed_twice_or_empty(caplog: pytest.LogCaptureFixture) -> None:
    metadata = with_tokens(
        small(), ("", NORMAL), ("ab", NORMAL), ("</s>", CONTROL), (" ab", USER_DEFINED), ("[X]", CONTROL)
    )
    ours = tokenizer_from_gguf(metadata | {LLAMA + "eos_token_id": 268})
    assert (ours.eos_id, ours.control_tokens["</s>"]) == (268, 268)
    for text in ("ab", "abc ab", "</s>", "a b"):
        assert ours.encode(text) == tokenizer_from_gguf(small()).encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert ours.control_tokens["[X]"] == 270
    assert "3 tokens twice" in caplog.text
    byte_level = tokenizer_to_gguf(GOLDENS / "byte_level", vocab_size=481)
    doubled = with_tokens(byte_level, (byte_level[LLAMA + "tokens"][70], NORMAL), ("<|eot_id|>", CONTROL))
    ours = tokenizer_from_gguf(doubled)
    for text in TEXTS:
        assert ours.encode(text) == tokenizer_from_gguf(byte_level).encode(text)


# Scores or merges.


@pytest.mark.parametrize("placeholder", [-1000.0, 0.0, None])
def test_merges_replace_placeholders_of_scores(placeholder: float | None) -> None:
    metadata = small()
    del metadata[LLAMA + "scores"]
    if placeholder is not None:
        metadata[LLAMA + "scores"] = np.full(len(metadata[LLAMA + "tokens"]), placeholder, np.float32)
    with pytest.raises(TokenizerError, match=r"placeholders for its tokens' scores and no merges.*--tok-model-id"):
        tokenizer_from_gguf(metadata)
    ours = tokenizer_from_gguf(metadata | {LLAMA + "merges": ["a b", "▁ ab", "ab c"]})
    assert isinstance(ours, HuggingFaceTokenizer)
    reference = tokenizer_from_gguf(small())
    for text in ("abc", "ab abc c", " a\n", "é", "<s>"):
        for at_start in (True, False):
            assert ours.encode(text, at_start=at_start) == reference.encode(text, at_start=at_start), text
    _same_tables(ours, reference)


def test_merges_that_scores_cannot_express_win() -> None:
    ours = tokenizer_from_gguf(small() | {LLAMA + "merges": ["a b", "ab c"]})
    assert isinstance(ours, HuggingFaceTokenizer)
    assert ours.encode("ab") == [262, 259]
    same = tokenizer_from_gguf(small() | {LLAMA + "merges": ["a b", "▁ ab", "ab c"]})
    assert not isinstance(same, HuggingFaceTokenizer)


def test_mistrals_merges_are_those_that_its_scores_mean() -> None:
    """Files that have both, as many of 2023 do, are read by their scores."""
    metadata = converted_sentencepiece("v1")
    normal = metadata[LLAMA + "token_type"] == NORMAL
    listed = zip(metadata[LLAMA + "tokens"], metadata[LLAMA + "scores"].tolist(), normal, strict=True)
    merges = merges_from_scores({text: score for text, score, is_normal in listed if is_normal})
    assert len(merges) == 58980  # as in tokenizer.json of Mistral 7B
    both = tokenizer_from_gguf(metadata | {LLAMA + "merges": [" ".join(pair) for pair in merges]})
    assert not isinstance(both, HuggingFaceTokenizer)


# What ends an answer.


def test_ends_of_an_answer() -> None:
    metadata = with_tokens(small(), ("<|im_end|>", CONTROL), ("<|endoftext|>", CONTROL), ("<|eom_id|>", CONTROL))
    ours = tokenizer_from_gguf(metadata)
    assert end_of_generation_ids(metadata, ours) == {2}
    assert end_of_generation_ids(metadata | {LLAMA + "eom_token_id": np.uint32(268)}, ours) == {2, 268}
    chatml = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
    assert end_of_generation_ids(metadata, ours, chatml) == {2, 266}
    assert end_of_generation_ids(metadata | {"tokenizer.chat_template": chatml}, ours) == {2, 266}
    named = {"tokenizer.chat_template": "{{ x }}", "tokenizer.chat_template.tool_use": "{{ x }}<|eom_id|>"}
    assert end_of_generation_ids(metadata | named, ours) == {2, 268}
    # A text that is no control token ends nothing, and neither does an id beyond the vocabulary.
    assert end_of_generation_ids(small(), tokenizer_from_gguf(small()), chatml) == {2}
    assert end_of_generation_ids(metadata | {LLAMA + "eot_token_id": 5000}, ours) == {2}


# A tokenizer from elsewhere.


def test_the_same_vocabulary_in_another_form_passes() -> None:
    check_same_tokens(converted_sentencepiece("v3"), tokenizer("v3"))
    check_same_tokens(converted_tekken("240718"), tokenizer("240718"))
    check_same_tokens(
        tokenizer_to_gguf(GOLDENS / "byte_fallback", vocab_size=600), load_tokenizer(GOLDENS / "byte_fallback")
    )
    padded = with_tokens(small(), ("[PAD266]", UNUSED), ("<dummy00001>", NORMAL))
    check_same_tokens(padded, tokenizer_from_gguf(small()))
    check_same_tokens(small(), tokenizer_from_gguf(small() | {LLAMA + "merges": ["a b"]}))
    check_same_tokens({}, tokenizer("v1"))


def test_a_tokenizer_that_is_replaced_may_be_broken() -> None:
    broken = small() | {
        LLAMA + "eos_token_id": 5000,
        LLAMA + "merges": ["?"],
        LLAMA + "scores": np.zeros(3, np.float32),
    }
    with pytest.raises(TokenizerError, match="--tok-model-id"):
        tokenizer_from_gguf(broken)
    reference = tokenizer_from_gguf(small())
    check_same_tokens(broken, reference)
    assert end_of_generation_ids(broken, reference) == {2}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v1", r"its token 3 is '<0x00>', in the file it is '\[INST\]'"),
        ("v2", r"its token 10 is '\[control_8\]', in the file it is '\[IMG\]'"),
        ("240718", r"its token 5 is '\[AVAILABLE_TOOLS\]', in the file it is '\[TOOL_CALLS\]'"),
    ],
)
def test_another_vocabulary_is_refused(name: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        check_same_tokens(converted_sentencepiece("v3"), tokenizer(name))


def test_a_vocabulary_with_more_or_fewer_tokens_is_refused() -> None:
    larger = with_tokens(small(), ("<|im_end|>", CONTROL))
    with pytest.raises(TokenizerError, match=r"its token 266 is no such token, in the file it is '<\|im_end\|>'"):
        check_same_tokens(larger, tokenizer_from_gguf(small()))
    with pytest.raises(TokenizerError, match=r"has 267 tokens, the GGUF file's has 266"):
        check_same_tokens(small(), tokenizer_from_gguf(larger))


def test_bytes_are_compared_not_spellings() -> None:
    changed = small()
    texts = list(changed[LLAMA + "tokens"])
    texts[260] = " ab"
    check_same_tokens(changed | {LLAMA + "tokens": texts}, tokenizer_from_gguf(small()))
    texts[260] = "▁aB"
    with pytest.raises(TokenizerError, match="its token 260 is '▁ab', in the file it is '▁aB'"):
        check_same_tokens(changed | {LLAMA + "tokens": texts}, tokenizer_from_gguf(small()))
    types = changed[LLAMA + "token_type"].copy()
    types[3 + 0x41] = NORMAL  # the text "<0x41>" instead of the byte
    assert changed[LLAMA + "token_type"][3 + 0x41] == BYTE
    with pytest.raises(TokenizerError, match="its token 68 is"):
        check_same_tokens(changed | {LLAMA + "token_type": types}, tokenizer_from_gguf(small()))
