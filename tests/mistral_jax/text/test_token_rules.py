"""What words, breakers and ends mean in the ids of real vocabularies."""

from __future__ import annotations

import pytest

from mistral_jax.runtime.sampling.params import SamplingParams, SamplingParamsError
from mistral_jax.text.token_rules import with_token_rules
from tests.mistral_jax.tokenizer.tokenizer_corpus import SENTENCEPIECE, TEKKEN, tokenizer

KINDS = [*SENTENCEPIECE, *TEKKEN]


def rules(kind: str, **settings: object):
    params = with_token_rules(SamplingParams(**settings), tokenizer(kind), {2})  # type: ignore[arg-type]
    assert params.rules is not None
    return params.rules


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_has_two_spellings(kind: str) -> None:
    vocabulary = tokenizer(kind)
    for word in ("house", " house", "Zwölftonmusik", "don't", "a b"):
        found = rules(kind, bad_words=(word,))
        spelled = {
            b"".join(map(vocabulary.token_bytes, ids)).decode()
            for ids in [*((i,) for i in found.banned), *found.banned_sequences]
        }
        bare = word.lstrip()
        assert bare in spelled
        assert spelled <= {bare, f" {bare}"}
        # Where the space is no part of the word's tokens, one sequence is for both.
        if f" {bare}" not in spelled:
            spaced = vocabulary.encode(f" {bare}", at_start=False)
            assert spaced[1:] == vocabulary.encode(bare, at_start=False)


@pytest.mark.parametrize("kind", KINDS)
def test_breakers_are_all_tokens_that_contain_one(kind: str) -> None:
    vocabulary = tokenizer(kind)
    found = rules(kind, dry_multiplier=1.0, dry_sequence_breakers=("\n", ":"))
    for token in range(0, vocabulary.vocab_size, 7):
        data = vocabulary.token_bytes(token)
        assert (token in found.breakers) == (b"\n" in data or b":" in data)
    assert (
        vocabulary.control_tokens["</s>"] in rules(kind, dry_multiplier=1.0, dry_sequence_breakers=("</s>",)).breakers
    )


def test_ends_are_those_of_the_model_and_of_the_request() -> None:
    assert rules(KINDS[0], min_tokens=1, stop_token_ids=(9, 7)).ends == (2, 7, 9)
    assert rules(KINDS[0], min_tokens=1, stop_token_ids=(9,), ignore_eos=True).ends == (9,)
    params = SamplingParams(stop_token_ids=(9,))
    assert with_token_rules(params, tokenizer(KINDS[0]), {2}) is params


@pytest.mark.parametrize(
    ("settings", "param", "told"),
    [
        ({"bad_words": ("x " * 40,)}, "bad_words", "expected words of at most 16"),
        ({"bad_words": (" ",)}, "bad_words", "has no tokens"),
        ({"bad_words": tuple(f"q{i}x{i}z" for i in range(300))}, "bad_words", "expected at most 256"),
        ({"dry_multiplier": 1.0, "dry_sequence_breakers": ("no such\ntoken",)}, "dry_sequence_breakers", "no token"),
        ({"dry_multiplier": 1.0, "dry_sequence_breakers": ("a",) * 33}, "dry_sequence_breakers", "at most 32"),
        ({"min_tokens": 1, "allowed_token_ids": (2, 9), "stop_token_ids": (9,)}, "allowed_token_ids", "exclude all"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(settings: dict[str, object], param: str, told: str) -> None:
    with pytest.raises(SamplingParamsError, match=told) as caught:
        rules(KINDS[0], **settings)
    assert caught.value.param == param
