"""Completions that a seeded random choice writes under the masks of a constraint, with real tokenizers of all kinds."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import numpy as np

from mistral_jax.grammar.compiler import CompiledGrammar, GrammarCompiler
from mistral_jax.grammar.grammar import Grammar
from mistral_jax.grammar.matching import GrammarConstraint
from mistral_jax.text.detokenizer import IncrementalDetokenizer
from mistral_jax.tokenizer import load_tokenizer
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.gguf import tokenizer_from_gguf
from tests.mistral_jax.tokenizer.gguf_vocabularies import converted_sentencepiece
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer

KINDS = ("sentencepiece", "tekken", "byte_level", "metaspace", "gguf")
"""tokenizer.model, tekken.json, tokenizer.json of both kinds, and the metadata of a GGUF file."""

_GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenizers"

PADDING = 77
"""Ids of the model's vocabulary beyond the tokenizer's."""


@cache
def tokenizer_of(kind: str) -> Tokenizer:
    match kind:
        case "sentencepiece":
            return tokenizer("v3")
        case "tekken":
            return tokenizer("240911")
        case "gguf":
            return tokenizer_from_gguf(converted_sentencepiece("v1"))
        case _:
            return load_tokenizer(_GOLDENS / kind)


@cache
def compiler(kind: str) -> GrammarCompiler:
    made = tokenizer_of(kind)
    assert made.eos_id is not None
    return GrammarCompiler(made, vocab_size=made.vocab_size + PADDING, eos_ids=[made.eos_id])


@cache
def compiled(kind: str, grammar: Grammar) -> CompiledGrammar:
    return compiler(kind).compile(grammar)


def allowed(kind: str, constraint: GrammarConstraint) -> list[int]:
    """The tokens that the mask allows."""
    mask = np.zeros(-(-(tokenizer_of(kind).vocab_size + PADDING) // 32), np.int32)
    constraint.fill(mask)
    return np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist()


def text_of(kind: str, tokens: list[int], *, at_start: bool) -> str:
    """What a client sees."""
    detokenizer = IncrementalDetokenizer(tokenizer_of(kind), at_start=at_start)
    return "".join(map(detokenizer.push, tokens)) + detokenizer.flush()


def takes(kind: str, grammar: Grammar, text: str, *, at_start: bool = True) -> bool:
    """Whether the grammar takes a text in its natural tokens, and may end after it."""
    made, constraint = tokenizer_of(kind), compiled(kind, grammar).start(at_start=at_start)
    dropped = " " if at_start and made.strips_leading_space else ""
    for token in [*made.encode(dropped + text, at_start=False), made.eos_id]:
        if token not in allowed(kind, constraint):
            # What is forced is written in the tokens of the forced text, which may differ at its end.
            return _takes_bytes(kind, grammar, text, at_start=at_start)
        constraint.push(token)
    return True


def _takes_bytes(kind: str, grammar: Grammar, text: str, *, at_start: bool) -> bool:
    """The same for any tokens: one is taken if the text goes on with it, longer ones first."""
    made, constraint = tokenizer_of(kind), compiled(kind, grammar).start(at_start=at_start)
    rest = (b" " if at_start and made.strips_leading_space else b"") + text.encode()
    while rest:
        ids = [i for i in allowed(kind, constraint) if i < made.vocab_size]
        fitting = [i for i in ids if made.token_bytes(i) and rest.startswith(made.token_bytes(i))]
        if not fitting:
            return False
        token = max(fitting, key=lambda i: len(made.token_bytes(i)))
        rest = rest[len(made.token_bytes(token)) :]
        constraint.push(token)
    return made.eos_id in allowed(kind, constraint)


@cache
def _closing(kind: str) -> np.ndarray:
    """bool [V]: the tokens that begin with a quote or a closing bracket."""
    made = tokenizer_of(kind)
    ends = (b'"', b"]", b"}")
    return np.array([made.token_bytes(i).strip()[:1] in ends for i in range(made.vocab_size)] + [False] * PADDING)


def walk(
    kind: str, grammar: Grammar, seed: int, *, at_start: bool = True, in_one_go: bool = False, most: int = 400
) -> list[int] | None:
    """The tokens of a random completion without its end; None if it has not ended after `most` tokens.

    Where the grammar may end, it does; else closing characters are preferred more and more, so that texts end.
    """
    made, constraint = tokenizer_of(kind), compiled(kind, grammar).start(at_start=at_start)
    chance, tokens = random.Random(seed), list[int]()
    mask = np.zeros(-(-(made.vocab_size + PADDING) // 32), np.int32)
    while not constraint.complete:
        if len(tokens) >= most:
            return None
        if in_one_go and (forced := constraint.forced()):
            for token in forced:
                constraint.push(token)
            tokens += forced
            continue
        constraint.fill(mask)
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")[: made.vocab_size + PADDING].view(bool)
        if bits[made.eos_id]:
            if chance.random() < 0.5:
                constraint.push(made.eos_id or 0)
                break
            bits[made.eos_id] = False
        ids = np.flatnonzero(bits)
        closing = np.flatnonzero(bits & _closing(kind)) if chance.random() < len(tokens) / 60 else []
        token = int(chance.choice(closing if len(closing) else ids))
        constraint.push(token)
        tokens.append(token)
    return tokens
