"""The cache of compiled grammars: bounded, and one compilation for many that ask at once."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from mistral_jax.grammar.cache import CompiledGrammars, bytes_of
from mistral_jax.grammar.compiler import CompiledGrammar, GrammarCompiler
from mistral_jax.grammar.grammar import Grammar, GrammarError
from tests.mistral_jax.grammar.walks import tokenizer_of


class Counting(GrammarCompiler):
    """Counts what it compiles, and takes its time."""

    def __init__(self) -> None:
        made = tokenizer_of("byte_level")
        super().__init__(made, vocab_size=made.vocab_size, eos_ids=[made.eos_id or 0])
        self.count = 0
        self.running = self.most = 0
        self._guard = threading.Lock()

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        with self._guard:
            self.count += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            time.sleep(0.02)
            return super().compile(grammar)
        finally:
            with self._guard:
                self.running -= 1


def test_a_grammar_is_compiled_once() -> None:
    compiler = Counting()
    cache = CompiledGrammars(compiler)
    grammars = [Grammar.regex("a" * (1 + i % 3)) for i in range(30)]
    with ThreadPoolExecutor(8) as pool:
        compiled = list(pool.map(cache.compile, grammars))
    assert compiler.count == 3
    assert compiler.most > 1
    assert compiled[0] is compiled[3] is cache.compile(Grammar.regex("a"))
    assert compiled[0] is not compiled[1]
    assert len(cache) == 3


def test_the_least_recently_used_goes_first() -> None:
    compiler = Counting()
    cache = CompiledGrammars(compiler, max_entries=2)
    a, b, c = (Grammar.choice([letter]) for letter in "abc")
    for grammar in (a, b, a, c, a):
        cache.compile(grammar)
    assert compiler.count == 3
    cache.compile(b)
    assert compiler.count == 4
    assert len(cache) == 2


def test_bytes_are_bounded() -> None:
    compiler = Counting()
    one = bytes_of(Grammar.regex("a" * 100))
    cache = CompiledGrammars(compiler, max_bytes=3 * one)
    for i in range(6):
        cache.compile(Grammar.regex(str(i) * 100))
    assert len(cache) == 3
    tiny = CompiledGrammars(compiler, max_bytes=one - 1)
    tiny.compile(Grammar.regex("a" * 100))
    assert len(tiny) == 0


def test_errors_are_not_kept() -> None:
    compiler = Counting()
    cache = CompiledGrammars(compiler)
    for _ in range(2):
        with pytest.raises(GrammarError, match="a lookahead"):
            cache.compile(Grammar.regex("(?=a)"))
    assert compiler.count == 2
    assert len(cache) == 0
    # Others that waited get an error, too.
    with ThreadPoolExecutor(4) as pool:
        errors = [future.exception() for future in [pool.submit(cache.compile, Grammar.regex("(")) for _ in range(4)]]
    assert all(isinstance(error, GrammarError) for error in errors)


def test_equal_grammars_are_one_and_different_ones_are_not() -> None:
    assert Grammar.choice(["a"]) == Grammar.choice(("a",))
    assert (
        len({Grammar.regex("a"), Grammar.lark("a"), Grammar.gbnf("a"), Grammar.json_schema("a"), Grammar.choice("a")})
        == 5
    )
    parts = {"x": Grammar.regex("a")}
    assert Grammar.trusted("start: @x", parts) != Grammar.trusted("start: @x", {"x": Grammar.regex("b")})
