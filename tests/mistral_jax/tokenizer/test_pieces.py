"""Long texts in pieces: the ids of the whole, whatever the vocabulary; and what cannot be encoded is one clear
error."""

from __future__ import annotations

import copy
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_jax
from mistral_jax.tokenizer import HuggingFaceTokenizer, TekkenTokenizer, TokenizerError, load_tokenizer
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.cuts import MAX_RUN
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.tokenizer.tokenizer_corpus import ALL, TEXTS, plain_text, tokenizer

DEMO = Path(mistral_jax.__file__).parent / "hub" / "bundled" / "demo"
BITS = [
    *(
        *TEXTS,
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "é",
        "e\u0301",
        "。",
        "漢字",
        "0",
        "12",
        "aB",
        "'s",
        "n't",
        ".",
        "...",
        "/",
        "//\n",
    ),
    *("-", "\u3000", "\x85", "\u200b", "😀", "<s>", "▁", "▁▁", "Ⅷ", "٣", "ß", "ǅ", "\x1c"),
]


@cache
def llama3() -> HuggingFaceTokenizer:
    """Byte-level BPE with Llama 3's expression, from the tokens of a tekken vocabulary."""
    return HuggingFaceTokenizer(
        _byte_level({"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False})
    )


_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def _tekken_model() -> dict[str, Any]:
    tekken = tokenizer("240911")
    assert isinstance(tekken, TekkenTokenizer)
    return json.loads(tekken._backend.to_str())["model"]


def _byte_level(split: dict[str, Any], added: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    model = _tekken_model()
    vocab = {piece: i - 1000 for piece, i in model["vocab"].items() if i < 9000}
    merges = [[a, b] for a, b in model["merges"] if a in vocab and b in vocab and a + b in vocab]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        "model": {"type": "BPE", "vocab": vocab, "merges": merges, "ignore_merges": True},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "added_tokens": added or [],
    }


@cache
def demo(**changes: Any) -> HuggingFaceTokenizer:
    """The bundled tokenizer.json, which has byte fallback, with other parts."""
    return HuggingFaceTokenizer({**json.loads((DEMO / "tokenizer.json").read_bytes()), **changes})


@cache
def with_added_tokens() -> HuggingFaceTokenizer:
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
    texts = ("<think>", "</think>", "fox jumps", " over", "a b c", "12ab")
    return HuggingFaceTokenizer(
        _byte_level(split, [{"id": 8000 + i, "content": t, **plain} for i, t in enumerate(texts)])
    )


VOCABULARIES = {
    **{name: lambda name=name: tokenizer(name) for name in ALL},
    "demo.json": demo,
    "demo.model": lambda: load_tokenizer(DEMO / "tokenizer.model"),
    "llama 3": llama3,
    "added tokens": with_added_tokens,
}


def whole(vocabulary: ByteTableTokenizer, text: str, *, at_start: bool) -> list[int]:
    return vocabulary._encode_safely(text, at_start) if text else []


def check(vocabulary: ByteTableTokenizer, text: str, *, at_start: bool, piece: int) -> int:
    pieces = list(vocabulary.encode_pieces(text, at_start=at_start, piece=piece))
    assert [token for tokens in pieces for token in tokens] == whole(vocabulary, text, at_start=at_start)
    assert vocabulary.least_tokens(text) <= sum(map(len, pieces))
    return len(pieces)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_pieces_give_the_ids_of_the_whole(name: str) -> None:
    vocabulary, rng, pieces = VOCABULARIES[name](), random.Random(7), 0
    extra = ["<think>", "fox jumps", "a b c", "12ab", "</think", " over"] if name == "added tokens" else []
    for _ in range(60):
        text = "".join(rng.choice([*BITS, *extra]) for _ in range(rng.randint(1, 50)))
        pieces += check(vocabulary, text, at_start=rng.random() < 0.5, piece=rng.randint(1, 20))
    assert pieces > 600  # they were cut


@pytest.mark.parametrize("name", VOCABULARIES)
@settings(max_examples=10, deadline=None)
@given(text=plain_text, at_start=st.booleans(), piece=st.integers(1, 9))
def test_pieces_of_any_text_give_the_ids_of_the_whole(name: str, text: str, at_start: bool, piece: int) -> None:
    if not any(0xD800 <= ord(letter) < 0xE000 for letter in text):
        check(VOCABULARIES[name](), text, at_start=at_start, piece=piece)


@pytest.mark.parametrize("name", VOCABULARIES)
def test_a_text_longer_than_a_piece_is_encoded_as_a_whole_would_be(name: str) -> None:
    vocabulary, rng = VOCABULARIES[name](), random.Random(3)
    text = "".join(rng.choice(BITS) + " " for _ in range(2500))
    assert len(list(vocabulary.encode_pieces(text))) > 1
    assert vocabulary.encode(text) == whole(vocabulary, text, at_start=True)


@pytest.mark.parametrize(
    "change",
    [
        {
            "normalizer": {
                "type": "Sequence",
                "normalizers": [{"type": "NFKC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
            }
        },
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "(?<=a) "}, "behavior": "Isolated", "invert": False}},
    ],
)
def test_what_is_not_known_to_be_separable_is_encoded_whole(change: dict[str, Any]) -> None:
    vocabulary = HuggingFaceTokenizer({**json.loads((DEMO / "tokenizer.json").read_bytes()), **copy.deepcopy(change)})
    assert len(list(vocabulary.encode_pieces("a word " * 10_000))) == 1
    assert vocabulary.least_tokens("a word " * 10_000) == 0


def test_added_tokens_that_take_spaces_make_no_promise() -> None:
    strips = {"single_word": False, "lstrip": True, "rstrip": True, "normalized": False, "special": False}
    split = {"type": "Split", "pattern": {"Regex": _LLAMA3}, "behavior": "Isolated", "invert": False}
    vocabulary = HuggingFaceTokenizer(_byte_level(split, [{"id": 8000, "content": "<think>", **strips}]))
    text = " " * 5000 + "<think>" + " " * 5000
    assert vocabulary.least_tokens(text) <= len(vocabulary.encode(text)) == 1


@pytest.mark.parametrize("name", ["v3", "240911"])
@pytest.mark.parametrize("text", [" " * 2_000_000 + "a", "a" * 1_100_000], ids=["spaces", "letters"])
def test_a_word_of_a_million_letters_is_refused_at_once(name: str, text: str) -> None:
    vocabulary = VOCABULARIES[name]()
    with cpu_seconds_at_most(10.0):
        pieces = vocabulary.encode_pieces(text)
        with pytest.raises(TokenizerError, match=f"more than {MAX_RUN:,} characters without the end of a word"):
            next(pieces)
    assert vocabulary.least_tokens(text) > 10_000


def test_a_panic_of_the_library_is_an_error_of_the_text(capfd: pytest.CaptureFixture[str]) -> None:
    """A vocabulary whose words are cut in a way that is not known is encoded whole, and the library gives up."""
    split = {
        "type": "Split",
        "pattern": {"Regex": r"(?:a|aa)+b|\s+(?!\S)|\s+|."},
        "behavior": "Isolated",
        "invert": False,
    }
    vocabulary = HuggingFaceTokenizer(_byte_level(split))
    with pytest.raises(TokenizerError, match=r"^The text of [\d,]+ characters cannot be encoded: .*[Rr]egex"):
        vocabulary.encode("a" * 60 + "c")
    capfd.readouterr()
    assert vocabulary.encode("aab") != []
