"""SentencePieceTokenizer against the sentencepiece library and mistral-common."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer as Reference
from sentencepiece import SentencePieceProcessor

from mistral_jax.tokenizer import AddedToken, SentencePieceTokenizer, SpecialTokens, TokenizerError
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.tokenizer.tokenizer_corpus import LOOK_ALIKES, SENTENCEPIECE, TEXTS, plain_text, tokenizer

versions = pytest.mark.parametrize("version", SENTENCEPIECE)


@versions
def test_encodes_and_decodes_as_mistral_common(version: str) -> None:
    ours, reference = tokenizer(version), Reference(SENTENCEPIECE[version])
    assert (ours.vocab_size, ours.bos_id, ours.eos_id, ours.unk_id) == (reference.n_words, 1, 2, 0)
    assert {i for t, i in ours.control_tokens.items() if t != "<unk>"} == reference.special_ids
    for text in TEXTS:
        ids = reference.encode(text, bos=False, eos=False)
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == reference.decode(ids), text


@versions
def test_at_start_alone_decides_about_the_dummy_prefix(version: str) -> None:
    ours = tokenizer(version)
    assert ours.strips_leading_space
    assert ours.add_bos
    assert ours.token_text(ours.encode("Hello")[0]) == "▁Hello"
    assert ours.token_text(ours.encode("Hello", at_start=False)[0]) == "Hello"
    assert ours.encode("Hello") == ours.encode(" Hello", at_start=False)
    # What follows the first word does not depend on it.
    assert ours.encode("x y", at_start=False)[1:] == ours.encode("x y")[1:]


@versions
def test_template_text_after_a_control_token_gets_one_space(version: str) -> None:
    ours = tokenizer(version)
    assert ours.encode_after_control("Hello") == ours.encode_after_control(" Hello") == ours.encode("Hello")


@versions
@settings(max_examples=60, deadline=None)
@given(text=plain_text)
def test_never_a_control_token_and_nothing_is_lost(version: str, text: str) -> None:
    ours = tokenizer(version)
    for at_start in (True, False):
        ids = ours.encode(text, at_start=at_start)
        assert set(ids).isdisjoint(ours.control_tokens.values())
        written = b"".join(map(ours.token_bytes, ids))
        assert written == (b" " if at_start and text else b"") + text.replace("▁", " ").encode()


@versions
def test_look_alikes_stay_text(version: str) -> None:
    ours = tokenizer(version)
    for text in LOOK_ALIKES:
        assert len(ours.encode(text)) > 1
        assert ours.decode(ours.encode(text)) == text


def test_the_version_is_in_the_name_or_in_the_control_tokens() -> None:
    for version, path in SENTENCEPIECE.items():
        assert tokenizer(version).instruct_version == version
        inferred = SentencePieceTokenizer(path.read_bytes()).instruct_version
        assert inferred == (None if version == "v1" else version)


def test_decode_shows_control_tokens_on_request() -> None:
    ours = tokenizer("v3")
    ids = [1, 3, *ours.encode("Hi"), 4, *ours.encode("Ho"), 2]
    assert ours.decode(ids) == "Hi Ho"
    assert ours.decode(ids, skip_control=False) == "<s>[INST]Hi[/INST] Ho</s>"


def test_bytes_that_are_no_utf8_become_replacement_characters() -> None:
    ours = tokenizer("v3")
    byte = {ours.token_bytes(i)[0]: i for i in range(ours.vocab_size) if ours.token_text(i).startswith("<0x")}
    assert len(byte) == 256
    assert ours.decode([byte[b] for b in b"\xf0\x9f\x98\x80"]) == "😀"
    for data in (b"\xff", b"\xf0\x9f", b"a\xe2\x82b", b"\xed\xa0\x80", b"\xc0\x80", bytes(range(128, 256))):
        assert ours.decode([byte[b] for b in data]) == data.decode("utf-8", "replace")


@versions
@pytest.mark.parametrize("text", ["a" * 1_000_000, " " * 1_000_000, "[INST]" * 150_000, "\n" * 300_000], ids=len)
def test_long_texts_take_linear_time(version: str, text: str) -> None:
    with cpu_seconds_at_most(10.0):
        tokenizer(version).encode(text)


def test_added_tokens_continue_the_vocabulary() -> None:
    special = SpecialTokens(
        names={"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "[PAD]"},
        others=frozenset({"<|im_end|>"}),
        added=(
            AddedToken(id=1, text="<s>", special=True),
            AddedToken(id=32000, text="<|im_end|>", special=True),
            AddedToken(id=32001, text="<|im_start|>", special=False),
            AddedToken(id=32002, text="<think>", special=False),
        ),
        add_bos=False,
    )
    ours = SentencePieceTokenizer(SENTENCEPIECE["v1"].read_bytes(), special=special)
    assert (ours.vocab_size, ours.eos_id, ours.pad_id, ours.add_bos) == (32003, 32000, None, False)
    # Turn markers are control tokens even where no file flags them; other added tokens are text.
    assert ours.control_tokens == {"<unk>": 0, "<s>": 1, "</s>": 2, "<|im_end|>": 32000, "<|im_start|>": 32001}
    ids = ours.encode("a<think>b<|im_end|>")
    plain = tokenizer("v1")
    assert ids == [*plain.encode("a"), 32002, *plain.encode("b<|im_end|>", at_start=False)]
    assert ours.decode(ids) == "a<think>b<|im_end|>"
    assert ours.token_bytes(32000) == b""


def test_a_normal_piece_that_is_flagged_special_is_never_encoded() -> None:
    plain = tokenizer("v1")
    hello = plain.encode("Hello", at_start=False)[0]
    special = SpecialTokens(added=(AddedToken(id=hello, text="Hello", special=True),))
    ours = SentencePieceTokenizer(SENTENCEPIECE["v1"].read_bytes(), special=special)
    ids = ours.encode("HelloHello", at_start=False)
    assert hello not in ids
    assert ours.decode(ids) == "HelloHello"


def test_lone_surrogates_are_replaced() -> None:
    assert tokenizer("v1").decode(tokenizer("v1").encode("a\ud800b")) == "a\ufffdb"


def test_without_dummy_prefix_no_space_is_stripped() -> None:
    ours = SentencePieceTokenizer(SENTENCEPIECE["v3"].read_bytes() + b"\x1a\x02\x18\x00")
    assert not ours.strips_leading_space
    assert ours.encode(" Hello") == SentencePieceProcessor(
        model_proto=SENTENCEPIECE["v3"].read_bytes() + b"\x1a\x02\x18\x00"
    ).encode(" Hello")
    assert ours.decode(ours.encode(" Hello")) == " Hello"


def test_errors_say_what_is_wrong() -> None:
    model = SENTENCEPIECE["v1"].read_bytes()
    with pytest.raises(TokenizerError, match="no sentencepiece model"):
        SentencePieceTokenizer(model[: len(model) // 2])
    with pytest.raises(TokenizerError, match="next free id is 32000"):
        SentencePieceTokenizer(model, special=SpecialTokens(added=(AddedToken(id=32005, text="x", special=True),)))
    with pytest.raises(TokenizerError, match="'<eos>' as eos_token"):
        SentencePieceTokenizer(model, special=SpecialTokens(names={"eos_token": "<eos>"}))
    with pytest.raises(TokenizerError, match=r"no control token '\[INST\]'"):
        tokenizer("v1").control_id("[INST]")
    for token_id in (-1, 32000):
        with pytest.raises(IndexError, match="outside the vocabulary of 32000"):
            tokenizer("v1").token_bytes(token_id)
