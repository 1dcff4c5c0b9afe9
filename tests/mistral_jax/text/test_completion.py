"""Where a completion ends, and what of its end is in its text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Sampled
from mistral_jax.text.completion import CompletionStream, Piece
from tests.mistral_jax.tokenizer.tokenizer_corpus import ALL, tokenizer

names = pytest.mark.parametrize("name", ALL)


def complete(name: str, ids: Iterable[int], *, max_tokens: int = 99, **settings: Any) -> list[Piece]:
    """The pieces of a completion, up to its end."""
    vocabulary = tokenizer(name)
    stream = CompletionStream(
        vocabulary, SamplingParams(**settings), eos_ids={vocabulary.control_tokens["</s>"]}, max_tokens=max_tokens
    )
    pieces: list[Piece] = []
    for token in ids:
        pieces.append(stream.push(Sampled(token, -1.0, ())))
        if pieces[-1].finish_reason is not None:
            return pieces
    raise AssertionError("it does not end")


def result(pieces: list[Piece]) -> tuple[str, str | None, int | str | None]:
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason, pieces[-1].stop_reason


def shown(pieces: list[Piece]) -> list[int]:
    return [sampled.token for piece in pieces for sampled in piece.tokens]


@names
def test_a_stop_token_ends_the_completion_as_an_end_of_sequence_does(name: str) -> None:
    vocabulary = tokenizer(name)
    hello, there = vocabulary.encode("Hello"), vocabulary.encode(" there", at_start=False)
    end, stop = vocabulary.control_tokens["</s>"], there[-1]
    ids = [*hello, *there, *hello, end]
    text = vocabulary.decode([*hello, *there[:-1]])
    ended = complete(name, ids, stop_token_ids=(stop,))
    assert result(ended) == (text, "stop", stop)
    assert (shown(ended), ended[-1].end) == ([*hello, *there[:-1]], Sampled(stop, -1.0, ()))
    assert result(complete(name, ids, stop_token_ids=(stop,), ignore_eos=True))[2] == stop
    kept = complete(name, ids, stop_token_ids=(stop,), include_stop_str_in_output=True)
    assert result(kept) == (vocabulary.decode([*hello, *there]), "stop", stop)
    assert (shown(kept), kept[-1].end) == ([*hello, *there], None)
    # An end-of-sequence token tells nothing more, and has no text unless that is asked for.
    assert result(complete(name, [*hello, end], include_stop_str_in_output=True)) == ("Hello", "stop", None)
    both = complete(name, [*hello, end], include_stop_str_in_output=True, skip_special_tokens=False)
    assert result(both) == ("Hello</s>", "stop", None)
    assert result(complete(name, [*hello, end], skip_special_tokens=False)) == ("Hello", "stop", None)


@names
def test_control_tokens_are_text_where_that_is_asked_for(name: str) -> None:
    vocabulary = tokenizer(name)
    hello, bos, end = vocabulary.encode("Hello"), vocabulary.control_tokens["<s>"], vocabulary.control_tokens["</s>"]
    ids = [*hello, bos, *vocabulary.encode(" x", at_start=False), end]
    assert result(complete(name, ids))[0] == "Hello x"
    assert result(complete(name, ids, skip_special_tokens=False))[0] == "Hello<s> x"
    assert result(complete(name, ids, skip_special_tokens=False, stop=("o<s>",))) == ("Hell", "stop", "o<s>")


@names
def test_a_stop_string_is_shown_where_that_is_asked_for(name: str) -> None:
    vocabulary = tokenizer(name)
    ids = [*vocabulary.encode("one, two; three"), vocabulary.control_tokens["</s>"]]
    for stop in (("two",), ("wo; th",), ("e", "x"), (", t",)):
        [found] = [s for s in stop if s in "one, two; three"]
        before, _, _ = "one, two; three".partition(found)
        assert result(complete(name, ids, stop=stop)) == (before, "stop", found)
        kept = complete(name, ids, stop=stop, include_stop_str_in_output=True)
        assert result(kept) == (before + found, "stop", found)
        assert vocabulary.decode(shown(kept)).startswith(before + found)
        assert not vocabulary.decode(shown(kept)[:-1]).startswith(before + found)


def test_stop_strings_do_not_end_a_completion_before_its_least_length() -> None:
    vocabulary = tokenizer("v3")
    ids = [token for _ in range(5) for token in vocabulary.encode("a", at_start=False)]
    assert len(ids) == 5
    for least in range(5):
        pieces = complete("v3", ids, stop=("a",), min_tokens=least)
        assert result(pieces) == ("a" * least, "stop", "a")
        assert shown(pieces) == ids[:least]
    # One that began earlier counts when it is complete.
    assert result(complete("v3", ids, stop=("aaa",), min_tokens=2)) == ("", "stop", "aaa")
    assert result(complete("v3", ids, stop=("aaa",), min_tokens=3)) == ("a", "stop", "aaa")
    assert result(complete("v3", ids, stop=("a",), min_tokens=5, max_tokens=5)) == ("aaaaa", "length", None)
