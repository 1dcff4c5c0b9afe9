"""From grammars to constraints: llguidance's grammars, one vocabulary for all."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits

from mistral_jax.grammar.grammar import Grammar, GrammarError
from mistral_jax.grammar.matching import GrammarConstraint
from mistral_jax.grammar.source import grammars_of
from mistral_jax.grammar.vocabulary import Vocabulary
from mistral_jax.tokenizer.base import Tokenizer

_CONTROL = re.compile(r"<\[(\d+)\]>")


class CompiledGrammar:
    """A grammar that is ready to use. Safe to use from several threads."""

    def __init__(
        self, vocabulary: Vocabulary, matcher: LLMatcher, after_space: LLMatcher | None, allowed: np.ndarray
    ) -> None:
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._after_space = after_space
        self._allowed = allowed

    def start(self, *, at_start: bool) -> GrammarConstraint:
        """The constraint of a new completion; costs some microseconds.

        Args:
          at_start: Whether the completion begins a text, so that the detokenizer may drop a leading space
            (`serving.engine.messages.Request.at_start`).
        """
        after_space = self._after_space.deep_copy() if at_start and self._after_space is not None else None
        return GrammarConstraint(
            self._vocabulary, self._matcher.deep_copy(), after_space=after_space, allowed=self._allowed
        )


class GrammarCompiler:
    """Compiles grammars for one tokenizer. Safe to use from several threads."""

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_ids: Collection[int]) -> None:
        """Args: see `Vocabulary`, which is made when it is needed first."""
        self._tokenizer, self._vocab_size, self._eos_ids = tokenizer, vocab_size, frozenset(eos_ids)
        self._lock = threading.Lock()
        self._made: Vocabulary | None = None

    @property
    def vocabulary(self) -> Vocabulary:
        """The vocabulary. The first use takes some tenths of a second."""
        with self._lock:
            if self._made is None:
                self._made = Vocabulary(self._tokenizer, vocab_size=self._vocab_size, eos_ids=self._eos_ids)
            return self._made

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Checks and compiles a grammar. Call it outside of the event loop.

        Raises:
          GrammarError: the grammar is not valid, asks for what cannot be held, or exceeds a limit.
        """
        grammars = grammars_of(grammar)
        vocabulary = self.vocabulary
        allowed = vocabulary.text
        if grammar.kind == "trusted_lark":
            allowed = allowed | vocabulary.mask(int(i) for i in _CONTROL.findall(grammar.text))
        after_space = None
        # Our own grammars say themselves where a space is natural: a dummy prefix never precedes a control token.
        if grammar.kind != "trusted_lark" and vocabulary.strips_leading_space:
            after_space = _matcher(vocabulary, [{"lark_grammar": 'start: " " @start'}, *grammars])
        return CompiledGrammar(vocabulary, _matcher(vocabulary, grammars), after_space, allowed)


def _matcher(vocabulary: Vocabulary, grammars: list[dict[str, Any]]) -> LLMatcher:
    matcher = LLMatcher(
        vocabulary.compiled,
        json.dumps({"grammars": grammars}),
        log_level=0,
        limits=LLParserLimits(verbose_errors=False),
    )
    if matcher.is_error():
        reason = matcher.get_error().partition("\n<")[0].strip()
        raise GrammarError(f"The grammar cannot be compiled: {reason}")
    return matcher
