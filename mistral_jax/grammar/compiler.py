"""From grammars to constraints: llguidance's grammars, one vocabulary for all."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection
from typing import Any

import numpy as np
from llguidance import LLMatcher

from mistral_jax.grammar.constraint import ConstraintError
from mistral_jax.grammar.errors import compile_error
from mistral_jax.grammar.grammar import Grammar, GrammarError
from mistral_jax.grammar.limits import PARSER_LIMITS, with_stack
from mistral_jax.grammar.matching import GrammarConstraint
from mistral_jax.grammar.source import START, grammars_of
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
        vocabulary = self.vocabulary
        return with_stack(lambda: _compiled(vocabulary, grammar))


def _compiled(vocabulary: Vocabulary, grammar: Grammar) -> CompiledGrammar:
    grammars = grammars_of(grammar)
    allowed = vocabulary.text
    if grammar.kind == "trusted_lark":
        allowed = allowed | vocabulary.mask(int(i) for i in _CONTROL.findall(grammar.text))
    after_space = None
    # Our own grammars say themselves where a space is natural: a dummy prefix never precedes a control token.
    if grammar.kind != "trusted_lark" and vocabulary.strips_leading_space:
        after_space = _matcher(vocabulary, [{"lark_grammar": f'start: " " @{START}'}, *grammars])
    compiled = CompiledGrammar(vocabulary, _matcher(vocabulary, grammars), after_space, allowed)
    try:
        # The first step of many grammars that exceed a limit does so already.
        compiled.start(at_start=True).fill(np.empty(vocabulary.words, np.int32))
    except ConstraintError as error:
        raise GrammarError(compile_error(str(error))) from error
    return compiled


def _matcher(vocabulary: Vocabulary, grammars: list[dict[str, Any]]) -> LLMatcher:
    matcher = LLMatcher(vocabulary.compiled, json.dumps({"grammars": grammars}), log_level=0, limits=PARSER_LIMITS)
    if matcher.is_error():
        raise GrammarError(compile_error(matcher.get_error()))
    return matcher
