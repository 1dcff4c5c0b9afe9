"""Our reading and writing of sentencepiece models, against the sentencepiece library."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from conversion.tokenizer.files import TokenizerError
from conversion.tokenizer.sentencepiece_model import (
    BPE,
    PieceType,
    SentencePieceModel,
    parse_sentencepiece,
    serialize_sentencepiece,
)
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE, TEXTS

versions = pytest.mark.parametrize("version", SENTENCEPIECE)


@versions
def test_pieces_are_those_that_the_library_reads(version: str) -> None:
    data = SENTENCEPIECE[version].read_bytes()
    ours, reference = parse_sentencepiece(data, version), SentencePieceProcessor(model_proto=data)
    ids = range(reference.vocab_size())
    assert ours.texts == [reference.id_to_piece(i) for i in ids]
    assert ours.scores == [reference.get_score(i) for i in ids]
    for kind, test in (
        (PieceType.UNKNOWN, reference.is_unknown),
        (PieceType.CONTROL, reference.is_control),
        (PieceType.UNUSED, reference.is_unused),
        (PieceType.BYTE, reference.is_byte),
    ):
        assert [i for i in ids if ours.types[i] == kind] == [i for i in ids if test(i)]
    assert (ours.model_type, ours.add_dummy_prefix, ours.bos, ours.eos) == (BPE, True, "<s>", "</s>")


@versions
def test_what_is_written_encodes_as_what_was_read(version: str) -> None:
    data = SENTENCEPIECE[version].read_bytes()
    read = parse_sentencepiece(data, version)
    written = serialize_sentencepiece(read)
    assert parse_sentencepiece(written, "") == read
    ours, reference = SentencePieceProcessor(model_proto=written), SentencePieceProcessor(model_proto=data)
    for text in (*TEXTS, "[REFERENCE_DOC_3] [REF]"):
        assert ours.encode(text) == reference.encode(text), text
    ids = [ours.bos_id(), ours.eos_id(), ours.unk_id(), ours.pad_id()]
    assert ids == [reference.bos_id(), reference.eos_id(), reference.unk_id(), reference.pad_id()]


def test_the_dummy_prefix_is_kept() -> None:
    data = SENTENCEPIECE["v1"].read_bytes() + b"\x1a\x02\x18\x00"  # a second normalizer_spec, which switches it off
    read = parse_sentencepiece(data, "")
    assert not read.add_dummy_prefix
    assert SentencePieceProcessor(model_proto=serialize_sentencepiece(read)).encode_as_pieces("a") == ["a"]


def test_one_piece_must_be_unknown() -> None:
    model = SentencePieceModel(texts=["a"], scores=[0.0], types=[PieceType.NORMAL], add_dummy_prefix=True)
    with pytest.raises(ValueError, match="one unknown piece, not 0"):
        serialize_sentencepiece(model)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.integers(0, 400).map(lambda n: SENTENCEPIECE["v1"].read_bytes()[:n])))
def test_other_bytes_are_refused_or_read(data: bytes) -> None:
    try:
        model = parse_sentencepiece(data, "x")
    except TokenizerError:
        return
    assert len(model.texts) == len(model.scores) == len(model.types) > 0


def test_a_model_cut_short_is_refused_by_name() -> None:
    with pytest.raises(TokenizerError, match=r"x is no sentencepiece model .*cut short"):
        parse_sentencepiece(SENTENCEPIECE["v1"].read_bytes()[:1000], "x")
