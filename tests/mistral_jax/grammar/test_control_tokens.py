"""No grammar of a user produces a control token, whatever it says."""

from __future__ import annotations

import json

import pytest

import mistral_jax.grammar.source
from mistral_jax.grammar.compiler import GrammarCompiler
from mistral_jax.grammar.grammar import Grammar, GrammarError
from tests.mistral_jax.grammar.walks import KINDS, allowed, tokenizer_of, walk

kinds = pytest.mark.parametrize("kind", KINDS)


def control_of(kind: str) -> set[int]:
    made = tokenizer_of(kind)
    return set(made.control_tokens.values()) - {made.eos_id}


@kinds
def test_texts_that_look_like_control_tokens_are_text(kind: str) -> None:
    names = list(tokenizer_of(kind).control_tokens)[:8]
    for grammar in (
        Grammar.choice(names),
        Grammar.json_schema(json.dumps({"enum": names})),
        Grammar.regex("\\xff<\\|3\\|>|\\[INST\\]|</s>"),
        Grammar.gbnf("root ::= " + " | ".join(map(json.dumps, names)) + ' | "\\xff<[3]>"'),
        Grammar.lark("start: " + " | ".join(map(json.dumps, names))),
    ):
        for seed in range(4):
            tokens = walk(kind, grammar, seed)
            assert tokens
            assert control_of(kind).isdisjoint(tokens)


@kinds
def test_they_stay_out_even_of_grammars_that_were_not_checked(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tokenizer_of(kind)
    control = sorted(control_of(kind) - {made.unk_id})[0]
    monkeypatch.setattr(mistral_jax.grammar.source, "checked", lambda text: text)
    compiler = GrammarCompiler(made, vocab_size=made.vocab_size + 77, eos_ids=[made.eos_id or 0])
    for text in (
        f'start: <[{control}]> "x" | "a"',
        'start: <[*]> | "a"',
        f'start: <[^{control + 1}]> | "a"',
        f'%llguidance {{"allow_invalid_utf8": true}}\nstart: "\\xff<|{control}|>" | "\\xff[{control}]" | "a"',
        '%llguidance {"allow_invalid_utf8": true}\nstart: T\nT: ~"b"',
        f'start: <|{control}|> | "a"',
    ):
        try:
            constraint = compiler.compile(Grammar.lark(text)).start(at_start=True)
        except GrammarError:
            continue
        assert control_of(kind).isdisjoint(allowed(kind, constraint)), text
    for text in (f"start: <[{control}]>", f'start: <[{made.eos_id}]> "a"'):
        with pytest.raises(GrammarError):  # no token is left
            compiler.compile(Grammar.lark(text)).start(at_start=True).fill
