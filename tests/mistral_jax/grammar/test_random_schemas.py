"""Everything that is written under the mask of a schema is valid, says an independent validator."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from mistral_jax.grammar.grammar import Grammar
from tests.mistral_jax.grammar.random_schemas import random_schema
from tests.mistral_jax.grammar.walks import text_of, walk

KINDS = ("sentencepiece", "tekken", "byte_level")
COUNT = 200


def check(kind: str, seed: int) -> bool:
    """Whether the completion has ended; if so, it is valid and written as `json.dumps` would."""
    schema = random_schema(seed)
    grammar = Grammar.json_schema(json.dumps(schema), strict=True)
    at_start = seed % 2 == 0
    tokens = walk(kind, grammar, seed, at_start=at_start, in_one_go=seed % 3 == 0, most=300)
    if tokens is None:
        return False
    text = text_of(kind, tokens, at_start=at_start)
    value = json.loads(text)
    validator = Draft202012Validator(schema, format_checker=Draft202012Validator.FORMAT_CHECKER)
    errors = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(value)]
    assert not errors, (seed, text, errors)
    return True


@pytest.mark.parametrize("kind", KINDS)
def test_completions_under_200_schemas_are_valid(kind: str) -> None:
    """A third of the schemas with each kind of tokenizer."""
    seeds = range(KINDS.index(kind), COUNT, len(KINDS))
    ended = [check(kind, seed) for seed in seeds]
    assert sum(ended) > 0.9 * len(ended)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_completions_under_all_schemas_with_each_tokenizer_are_valid(kind: str) -> None:
    ended = [check(kind, seed) for seed in range(2 * COUNT)]
    assert sum(ended) > 0.9 * len(ended)
