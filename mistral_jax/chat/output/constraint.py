"""Completions that are free until the model begins a tool call, and held to a grammar from there on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import numpy as np

from mistral_jax.chat.output.trigger import Trigger, TriggerWatch
from mistral_jax.grammar.compiler import CompiledGrammar
from mistral_jax.grammar.constraint import ConstraintError
from mistral_jax.grammar.matching import GrammarConstraint


class TriggeredGrammar:
    """A grammar that holds after a trigger. Shared between completions.

    Args:
      grammar: of the rest of the completion after the trigger.
      token_bytes: the bytes of a token; b"" for control tokens.
      vocab_size: number of tokens that have bytes.
      eos_ids: tokens that end a completion.
    """

    def __init__(
        self,
        trigger: Trigger,
        grammar: CompiledGrammar,
        *,
        token_bytes: Callable[[int], bytes],
        vocab_size: int,
        eos_ids: Collection[int],
    ) -> None:
        self.trigger, self.grammar = trigger, grammar
        self._token_bytes, self._vocab_size = token_bytes, vocab_size
        self.eos_ids = frozenset(eos_ids)

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token; b"" for control tokens and padding of the vocabulary."""
        return self._token_bytes(token) if token < self._vocab_size else b""

    def start(self, *, at_start: bool) -> TriggeredConstraint:
        """The constraint of a new completion."""
        return TriggeredConstraint(self)


class TriggeredConstraint:
    """The constraint of one completion; see `TriggeredGrammar`.

    Before the trigger every token is allowed. If the token that completes the trigger has more text, and that is not
    the beginning of a call, the completion stays free: it is no call.
    """

    def __init__(self, shared: TriggeredGrammar) -> None:
        self._shared = shared
        self._watch: TriggerWatch | None = TriggerWatch(shared.trigger)
        self._held: GrammarConstraint | None = None
        """None: the completion is free."""
        self._ended = False

    def fill(self, mask: np.ndarray) -> None:
        """See `Constraint.fill`."""
        if self._held is None:
            mask[:] = -1
        else:
            self._held.fill(mask)

    def forced(self) -> Sequence[int]:
        """See `Constraint.forced`."""
        return () if self._held is None else self._held.forced()

    def push(self, token: int) -> None:
        """See `Constraint.push`."""
        if self._held is not None:
            self._held.push(token)
        elif token in self._shared.eos_ids:
            self._ended = True
        elif self._watch is not None and (rest := self._watch.push(token, self._shared.token_bytes(token))) is not None:
            self._watch = None
            held = self._shared.grammar.start(at_start=False)
            try:
                held.push_text(rest)
            except ConstraintError:
                return
            self._held = held

    @property
    def complete(self) -> bool:
        """See `Constraint.complete`."""
        return self._ended if self._held is None else self._held.complete
