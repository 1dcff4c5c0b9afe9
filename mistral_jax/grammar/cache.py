"""Compiled grammars, kept for the next request with the same grammar."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Final

from mistral_jax.grammar.compiler import CompiledGrammar, GrammarCompiler
from mistral_jax.grammar.grammar import Grammar

MAX_ENTRIES: Final = 128
MAX_BYTES: Final = 64 << 20
"""Bytes of all entries together, as `_bytes` estimates them."""

_BYTES_OF_TEXT: Final = 300
"""Memory of a compiled grammar for each byte of its text, at most: measured over the largest schemas and grammars."""

_BYTES_OF_ANY: Final = 200_000
"""And of the smallest."""


class CompiledGrammars:
    """A bounded cache, the least recently used out first. Safe to use from several threads.

    It compiles as `GrammarCompiler` does. A grammar that many requests ask for at once is compiled once. Errors are not
    kept.
    """

    def __init__(
        self, compiler: GrammarCompiler, *, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES
    ) -> None:
        """An empty cache.

        Args:
          compiler: Compiles what is not in it.
          max_entries, max_bytes: Its bounds.
        """
        self._compiler = compiler
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._lock = threading.Lock()
        self._entries: OrderedDict[Grammar, CompiledGrammar] = OrderedDict()
        self._bytes = 0
        self._compiling: dict[Grammar, threading.Event] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """The compiled grammar, from the cache or new. Call it outside of the event loop.

        Raises:
          GrammarError: see `GrammarCompiler.compile`.
        """
        while True:
            with self._lock:
                if (found := self._entries.get(grammar)) is not None:
                    self._entries.move_to_end(grammar)
                    return found
                if (other := self._compiling.get(grammar)) is None:
                    mine = self._compiling[grammar] = threading.Event()
                    break
            other.wait()
        try:
            compiled = self._compiler.compile(grammar)
            with self._lock:
                self._add(grammar, compiled)
            return compiled
        finally:
            with self._lock:
                del self._compiling[grammar]
            mine.set()

    def _add(self, grammar: Grammar, compiled: CompiledGrammar) -> None:
        size = bytes_of(grammar)
        if size > self._max_bytes:
            return
        self._entries[grammar] = compiled
        self._bytes += size
        while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
            oldest, _ = self._entries.popitem(last=False)
            self._bytes -= bytes_of(oldest)


def bytes_of(grammar: Grammar) -> int:
    """About how much memory the compiled grammar takes, at most."""
    text = len(grammar.text) + sum(map(len, grammar.choices)) + sum(len(part.text) for _, part in grammar.parts)
    return _BYTES_OF_ANY + _BYTES_OF_TEXT * text
