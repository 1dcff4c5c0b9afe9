"""Grammar constraints keep the protocol that the engine relies on, with tokenizers of all kinds."""

from __future__ import annotations

import json
import random
import re
from typing import Any

import numpy as np
import pytest

from mistral_jax.grammar.compiler import GrammarCompiler
from mistral_jax.grammar.constraint import Constraint, ConstraintError
from mistral_jax.grammar.grammar import Grammar
from tests.mistral_jax.grammar.walks import KINDS, PADDING, allowed, compiled, takes, text_of, tokenizer_of, walk

kinds = pytest.mark.parametrize("kind", KINDS)
starts = pytest.mark.parametrize("at_start", [True, False])

PERSON = Grammar.json_schema(
    json.dumps(
        {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 8},
                "age": {"type": "integer", "minimum": 0, "maximum": 150},
                "tags": {"type": "array", "items": {"enum": ["a", "bb", "ü"]}, "maxItems": 3},
            },
            "required": ["name", "age", "tags"],
            "additionalProperties": False,
        }
    )
)
SPACED = Grammar.regex(" {0,3}x| y")
GRAMMARS = (PERSON, SPACED, Grammar.choice(["yes", "no", "no way"]), Grammar.lark('start: "a" b+\nb: "x" | "yz"'))


@kinds
@starts
def test_every_text_matches_its_grammar(kind: str, at_start: bool) -> None:
    for seed in range(12):
        text = text_of(kind, _walk(kind, PERSON, seed, at_start), at_start=at_start)
        person: dict[str, Any] = json.loads(text)
        assert list(person) == ["name", "age", "tags"]
        assert len(person["name"]) <= 8
        assert 0 <= person["age"] <= 150
        assert set(person["tags"]) <= {"a", "bb", "ü"}
        assert text == json.dumps(person, ensure_ascii=False)
        for grammar, pattern in (
            (SPACED, " {0,3}x| y"),
            (GRAMMARS[2], "yes|no|no way"),
            (GRAMMARS[3], "a(x|yz)+"),
        ):
            text = text_of(kind, _walk(kind, grammar, seed, at_start), at_start=at_start)
            assert re.fullmatch(pattern, text), (grammar, text)


def _walk(kind: str, grammar: Grammar, seed: int, at_start: bool) -> list[int]:
    tokens = walk(kind, grammar, seed, at_start=at_start)
    assert tokens is not None
    return tokens


@kinds
@starts
def test_texts_are_taken_in_natural_tokens(kind: str, at_start: bool) -> None:
    for text in ("x", " x", "   x", " y"):
        assert takes(kind, SPACED, text, at_start=at_start), text
    for text in ("y", "    x", "", "x ", "  y"):
        assert not takes(kind, SPACED, text, at_start=at_start), text
    assert takes(kind, PERSON, '{"name": "Jörg", "age": 7, "tags": ["ü", "a"]}', at_start=at_start)
    assert not takes(kind, PERSON, '{"name": "Jörg", "age": 151, "tags": []}', at_start=at_start)


@kinds
def test_the_natural_first_token_is_possible_and_forced_tokens_are_natural(kind: str) -> None:
    made = tokenizer_of(kind)
    natural = made.encode('{"name": "Jo", "age": 3, "tags": []}', at_start=True)
    constraint = compiled(kind, PERSON).start(at_start=True)
    assert natural[0] in allowed(kind, constraint)
    tokens: list[int] = []
    if made.strips_leading_space:
        assert constraint.forced() == ()  # with a space before it or without
    else:
        assert list(constraint.forced()) == natural[: len(constraint.forced())] != []
    for token in natural:
        if forced := constraint.forced():
            assert forced[0] == token
        constraint.push(token)
        tokens.append(token)
    assert constraint.complete


@kinds
@starts
def test_forced_tokens_are_the_same_in_one_go_or_one_by_one(kind: str, at_start: bool) -> None:
    for grammar in GRAMMARS:
        for seed in range(6):
            one_by_one = _forced_or_drawn(kind, grammar, seed, at_start, in_one_go=False)
            assert one_by_one == _forced_or_drawn(kind, grammar, seed, at_start, in_one_go=True)


def _forced_or_drawn(kind: str, grammar: Grammar, seed: int, at_start: bool, *, in_one_go: bool) -> list[int]:
    """Draws only where there is a choice, as the engine does with forced tokens."""
    constraint, chance, tokens = compiled(kind, grammar).start(at_start=at_start), random.Random(seed), list[int]()
    while not constraint.complete and len(tokens) < 200:
        if forced := constraint.forced():
            assert allowed(kind, constraint) == [forced[0]]
            taken = forced if in_one_go else forced[:1]
        else:
            taken = [chance.choice(allowed(kind, constraint))]
        for token in taken:
            constraint.push(token)
        tokens += taken
    return tokens


@kinds
@starts
def test_decisions_depend_on_the_pushed_tokens_alone(kind: str, at_start: bool) -> None:
    tokens = _walk(kind, PERSON, 3, at_start)
    fresh = compiled(kind, PERSON)
    first = fresh.start(at_start=at_start)
    masks: list[tuple[list[int], bool]] = []
    for token in tokens:
        masks.append((allowed(kind, first), first.complete))
        first.push(token)
    # Another that asks for nothing on the way, at last, while others were busy.
    for seed in range(3):
        _walk(kind, PERSON, seed, at_start)
    for count, expected in enumerate(masks):
        other = fresh.start(at_start=at_start)
        for token in tokens[:count]:
            other.push(token)
        assert (allowed(kind, other), other.complete) == expected


@kinds
def test_the_end_is_allowed_exactly_where_the_grammar_may_end(kind: str) -> None:
    eos = tokenizer_of(kind).eos_id
    assert eos is not None
    grammar = Grammar.lark('start: "ab" "ab"*')
    constraint = compiled(kind, grammar).start(at_start=False)
    assert eos not in allowed(kind, constraint)
    with pytest.raises(ConstraintError, match="ended before"):
        compiled(kind, grammar).start(at_start=False).push(eos)
    for token in tokenizer_of(kind).encode("ab", at_start=False):
        constraint.push(token)
    assert eos in allowed(kind, constraint)
    assert not constraint.complete
    constraint.push(eos)
    assert constraint.complete
    assert allowed(kind, constraint) == [eos]
    with pytest.raises(ConstraintError, match="after the end"):
        constraint.push(eos)


@kinds
def test_a_token_that_does_not_fit_is_an_error(kind: str) -> None:
    constraint = compiled(kind, Grammar.regex("[ab]{9}")).start(at_start=False)
    with pytest.raises(ConstraintError, match="satisfy the grammar"):
        constraint.push(tokenizer_of(kind).encode("c", at_start=False)[0])


@kinds
def test_control_tokens_padding_and_the_unknown_are_never_allowed(kind: str) -> None:
    made = tokenizer_of(kind)
    never = {*made.control_tokens.values(), *range(made.vocab_size, made.vocab_size + PADDING)} - {made.eos_id}
    never |= {i for i in range(made.vocab_size) if not made.token_bytes(i)} - {made.eos_id}
    for at_start in (True, False):
        ids = allowed(kind, compiled(kind, Grammar.regex("(?s:.*)")).start(at_start=at_start))
        assert never.isdisjoint(ids)
        assert len(ids) > 0.7 * len([i for i in range(made.vocab_size) if made.token_bytes(i)])


@kinds
def test_a_trusted_grammar_names_control_tokens_and_its_parts_stay_text(kind: str) -> None:
    made = tokenizer_of(kind)
    control = min(i for i in made.control_tokens.values() if i not in (made.eos_id, made.unk_id))
    grammar = Grammar.trusted(
        f'start: <[{control}]> "[" @arguments "]"', {"arguments": Grammar.json_schema('{"enum": ["</s>", 1]}')}
    )
    constraint = compiled(kind, grammar).start(at_start=True)
    assert constraint.forced()[0] == control
    assert allowed(kind, constraint) == [control]
    tokens = walk(kind, grammar, 1)
    assert tokens is not None
    assert tokens[0] == control
    assert set(made.control_tokens.values()).isdisjoint(tokens[1:])
    assert text_of(kind, tokens, at_start=False) in ('["</s>"]', "[1]")


def test_without_an_end_of_sequence_token_the_grammar_still_ends() -> None:
    made = tokenizer_of("sentencepiece")
    size = made.vocab_size
    constraint: Constraint = (
        GrammarCompiler(made, vocab_size=size, eos_ids=[]).compile(Grammar.choice(["yes"])).start(at_start=False)
    )
    mask = np.zeros(size // 32, np.int32)
    for token in made.encode("yes", at_start=False):
        constraint.fill(mask)
        assert mask[token // 32] >> (token % 32) & 1
        constraint.push(token)
    assert constraint.complete
    constraint.fill(mask)
    assert not mask.any()


def test_several_end_of_sequence_tokens() -> None:
    made = tokenizer_of("tekken")
    ids = [2, 4, 9]
    constraint = GrammarCompiler(made, vocab_size=made.vocab_size, eos_ids=ids).compile(Grammar.regex("a?"))
    for end in ids:
        started = constraint.start(at_start=True)
        assert set(ids) <= set(_allowed(started, made.vocab_size))
        started.push(end)
        assert started.complete


def _allowed(constraint: Constraint, size: int) -> list[int]:
    mask = np.zeros(-(-size // 32), np.int32)
    constraint.fill(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()
