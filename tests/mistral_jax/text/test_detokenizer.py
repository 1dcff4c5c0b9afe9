"""The incremental detokenizer gives the whole decode, byte for byte, in whatever pieces the tokens come."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.text.detokenizer import IncrementalDetokenizer
from tests.mistral_jax.tokenizer.tokenizer_corpus import ALL, TEXTS, plain_text, tokenizer

names = pytest.mark.parametrize("name", ALL)


def pieces(name: str, ids: list[int], *, at_start: bool = True) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer(name), at_start=at_start)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@names
def test_texts_come_back(name: str) -> None:
    for text in TEXTS:
        got = "".join(pieces(name, tokenizer(name).encode(text)))
        assert got == (text.replace("▁", " ") if tokenizer(name).strips_leading_space else text)


@names
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_joined_pieces_are_the_whole_decode(name: str, data: st.DataObject) -> None:
    size = tokenizer(name).vocab_size
    byte_ids = (
        st.integers(1000, 1255)
        if size > 100_000
        else st.integers(3, 260).map(lambda i: i + (768 if size > 32000 else 0))
    )
    ids = data.draw(st.lists(st.one_of(byte_ids, st.integers(0, 12), st.integers(0, size - 1)), max_size=20))
    assert "".join(pieces(name, ids)) == tokenizer(name).decode(ids)


@names
@settings(max_examples=40, deadline=None)
@given(text=plain_text, cut=st.floats(0, 1))
def test_text_cut_inside_a_character_ends_with_a_replacement(name: str, text: str, cut: float) -> None:
    ids = tokenizer(name).encode(text)
    ids = ids[: int(len(ids) * cut)]
    got = pieces(name, ids)
    assert "".join(got) == tokenizer(name).decode(ids)
    assert all("\ufffd" not in piece or "\ufffd" in text for piece in got[:-1])


@pytest.mark.parametrize("name", ["v1", "v3"])
def test_exactly_one_leading_space_is_dropped(name: str) -> None:
    ids = tokenizer(name).encode("  x")  # three spaces with the dummy prefix
    assert "".join(pieces(name, [1, *ids])) == "  x"
    assert "".join(pieces(name, ids, at_start=False)) == "   x"


def test_a_character_appears_with_its_last_byte() -> None:
    v3 = tokenizer("v3")
    byte = {v3.token_bytes(i): i for i in range(771, 1027)}
    ids = [*v3.encode("Hi"), *(byte[bytes([b])] for b in "😀".encode())]
    assert pieces("v3", ids) == ["Hi", "", "", "", "😀", ""]
    assert pieces("v3", ids[:-1]) == ["Hi", "", "", "", "\ufffd"]


def test_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(IndexError):
        IncrementalDetokenizer(tokenizer("v1")).push(32000)


@names
def test_control_tokens_appear_where_they_are_asked_for(name: str) -> None:
    vocabulary = tokenizer(name)
    end = vocabulary.control_tokens["</s>"]
    ids = [vocabulary.control_tokens["<s>"], *vocabulary.encode("Hé 🎉"), end, *vocabulary.encode("x", at_start=False)]
    detokenizer = IncrementalDetokenizer(vocabulary, show_control=True)
    shown = "".join([*map(detokenizer.push, ids), detokenizer.flush()])
    assert shown == vocabulary.decode(ids, skip_control=False) == "<s>Hé 🎉</s>x"
