"""What texts in sampling parameters mean in a tokenizer's ids: words that must not appear, sequence breakers, ends."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from mistral_jax.runtime.sampling.params import (
    MAX_BANNED,
    MAX_BANNED_LENGTH,
    SamplingParams,
    SamplingParamsError,
    TokenRules,
)
from mistral_jax.tokenizer.base import Tokenizer

MAX_BREAKERS = 32
"""Most sequence breakers: for each the whole vocabulary is searched."""


def with_token_rules(params: SamplingParams, tokenizer: Tokenizer, eos_ids: Collection[int]) -> SamplingParams:
    """The parameters with `rules`, if they need any. May take tens of milliseconds for new sequence breakers.

    Raises:
      SamplingParamsError: a text has no tokens, or too many, or the parameters together leave no token to choose.
    """
    if not params.needs_rules:
        return params
    words = _words(params.bad_words, tokenizer)
    rules = TokenRules(
        ends=tuple(sorted({*params.stop_token_ids, *(() if params.ignore_eos else eos_ids)})),
        banned=tuple(word[0] for word in words if len(word) == 1),
        banned_sequences=tuple(word for word in words if len(word) > 1),
        breakers=_breakers(params.dry_sequence_breakers, tokenizer) if params.uses_dry else (),
    )
    if len(rules.banned_sequences) > MAX_BANNED:
        raise SamplingParamsError(
            "bad_words",
            f"bad_words: {len(rules.banned_sequences)} spellings of several tokens; expected at most {MAX_BANNED}",
        )
    _check_choice(params, rules)
    return replace(params, rules=rules)


def _check_choice(params: SamplingParams, rules: TokenRules) -> None:
    """Check that some allowed token is not banned."""
    allowed = params.allowed_token_ids
    banned = {*rules.banned, *(rules.ends if params.min_tokens else ())}
    if allowed is not None and banned.issuperset(allowed):
        raise SamplingParamsError(
            "allowed_token_ids",
            "allowed_token_ids: bad_words and min_tokens exclude all of them; nothing can be chosen",
        )


def _words(words: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The token sequences of words, each once."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        spellings = list(_spellings(word, tokenizer))
        if not spellings:
            raise SamplingParamsError("bad_words", f"bad_words: {word[:50]!r} has no tokens; leave it out")
        longest = max(map(len, spellings))
        if longest > MAX_BANNED_LENGTH:
            raise SamplingParamsError(
                "bad_words",
                f"bad_words: {word[:50]!r} has {longest} tokens; expected words of at most {MAX_BANNED_LENGTH}",
            )
        found.update(dict.fromkeys(spellings))
    return list(found)


def _spellings(word: str, tokenizer: Tokenizer) -> Iterator[tuple[int, ...]]:
    """The word without a space before it, and with one, unless that has the same tokens at its end."""
    # As inside a text: at its start, a vocabulary with a dummy prefix writes a space itself.
    bare = tuple(tokenizer.encode(word.lstrip(), at_start=False))
    spaced = tuple(tokenizer.encode(f" {word.lstrip()}", at_start=False))
    if bare:
        yield bare
        if spaced[-len(bare) :] != bare:
            yield spaced


def _breakers(texts: Sequence[str], tokenizer: Tokenizer) -> tuple[int, ...]:
    if len(texts) > MAX_BREAKERS:
        raise SamplingParamsError(
            "dry_sequence_breakers", f"dry_sequence_breakers: {len(texts)} texts; expected at most {MAX_BREAKERS}"
        )
    return tuple(sorted(set(itertools.chain.from_iterable(_containing(text, tokenizer) for text in texts))))


@functools.lru_cache(maxsize=256)
def _containing(text: str, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens whose text contains `text`.

    Raises:
      SamplingParamsError: there are none.
    """
    data = text.encode("utf-8", "surrogatepass")
    found = tuple(token for token in range(tokenizer.vocab_size) if data in tokenizer.token_bytes(token))
    control = tuple(token for name, token in tokenizer.control_tokens.items() if text in name)
    if not found and not control:
        raise SamplingParamsError(
            "dry_sequence_breakers",
            f"dry_sequence_breakers: no token of the vocabulary contains {text[:50]!r}; expected parts of tokens",
        )
    return (*found, *control)
