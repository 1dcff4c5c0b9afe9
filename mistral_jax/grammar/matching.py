"""The constraint of one completion: a matcher of llguidance, kept to the tokens that are allowed at all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from llguidance import LLMatcher

from mistral_jax.grammar.constraint import ConstraintError
from mistral_jax.grammar.errors import without_state
from mistral_jax.grammar.vocabulary import Vocabulary


class GrammarConstraint:
    """Implements `Constraint` for a grammar.

    Vocabularies with a dummy prefix begin a text with a token such as `▁{`, and the detokenizer drops that space. At
    the start of a text the grammar therefore has two forms, with and without a space before it, and the first token
    decides: one that begins with a space belongs to the form with it. The text without the dropped space matches the
    grammar either way.

    Control tokens stay out by construction: whatever a grammar says, a mask is intersected with `allowed`, and
    end-of-sequence tokens are added exactly where the grammar may end.
    """

    def __init__(
        self, vocabulary: Vocabulary, matcher: LLMatcher, *, after_space: LLMatcher | None, allowed: np.ndarray
    ) -> None:
        """Starts a completion.

        Args:
          vocabulary: The vocabulary.
          matcher: A fresh matcher of its own.
          after_space: At the start of a text whose first space is dropped, another for the same grammar after a space.
          allowed: int32 [words]: the tokens that the grammar may use.
        """
        self._vocabulary = vocabulary
        self._matcher = matcher
        self._after_space = after_space
        self._allowed = allowed
        self._ended = False
        self._forced: list[int] | None = None
        """Tokens that must come next, the next one last; None: not computed yet."""
        self._mask: np.ndarray | None = None
        """None: not computed yet."""

    def fill(self, mask: np.ndarray) -> None:
        """Write which tokens may come next; see `Constraint.fill`.

        Raises:
          ConstraintError: a limit on the work of one step was exceeded, or no token can go on.
        """
        np.copyto(mask, self._next())

    def forced(self) -> Sequence[int]:
        """The tokens that certainly come next, as the tokenizer itself would write the text.

        Raises:
          ConstraintError: see `fill`.
        """
        if self._forced is None:
            self._forced = self._next_forced()
        return tuple(reversed(self._forced))

    def push(self, token: int) -> None:
        """Take the next token; see `Constraint.push`.

        Raises:
          ConstraintError: the grammar does not allow the token.
        """
        if self._ended:
            raise ConstraintError("A token came after the end of the completion.")
        if token in self._vocabulary.eos_ids:
            if not self._may_end():
                raise ConstraintError("The completion ended before its grammar did.")
            self._ended = True
            self._forced, self._mask = [], None
            return
        if self._after_space is not None:
            if self._vocabulary.starts_with_space(token):
                self._matcher = self._after_space
            self._after_space = None
        if not self._matcher.consume_token(token):
            self._raise(self._matcher, f"Token {token} does not fit the grammar.")
        self._mask = None
        if self._forced:
            # What was forced stays as it is: computed again after each token, it might be cut differently.
            if self._forced.pop() != token:
                raise ConstraintError(f"Token {token} came where the grammar forces another.")
            if self._forced:
                return
        self._forced = None

    def push_text(self, text: bytes) -> None:
        """Take text that came before the first token of this constraint, as part of a token that began elsewhere.

        Raises:
          ConstraintError: the grammar does not begin so.
        """
        for token in self._vocabulary.compiled.tokenize_bytes(text):
            if not self._matcher.consume_token(token):
                self._raise(self._matcher, f"The grammar does not begin with {text!r}.")
        self._mask, self._forced = None, None

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but an end-of-sequence token.

        Raises:
          ConstraintError: see `fill`.
        """
        if self._ended:
            return True
        if self._forced or not self._may_end():
            return False
        if self._after_space is None and self._matcher.is_stopped():
            return True
        return not (self._next() & ~self._vocabulary.eos).any()

    def _may_end(self) -> bool:
        accepting = self._matcher.is_accepting() or (self._after_space is not None and self._after_space.is_accepting())
        self._check(self._matcher)
        return accepting

    def _next(self) -> np.ndarray:
        if self._mask is None:
            if self._ended:
                self._mask = self._vocabulary.eos
            elif forced := self.forced():
                self._mask = self._vocabulary.mask(forced[:1])
            elif self._after_space is None:
                self._mask = self._mask_of(self._matcher)
            else:
                self._mask = self._without_space() | self._mask_of(self._after_space)
            if not self._mask.any() and (self._vocabulary.eos_ids or not self._may_end()):
                raise ConstraintError("No token of the vocabulary continues the grammar.")
        return self._mask

    def _next_forced(self) -> list[int]:
        matcher = self._matcher
        if self._after_space is not None:
            if self._without_space().any():
                return []
            matcher = self._after_space
        if matcher.is_stopped():
            self._check(matcher)
            return []
        forced = matcher.compute_ff_tokens()
        self._check(matcher)
        if not all(self._allowed[token // 32] >> (token % 32) & 1 for token in forced):
            raise ConstraintError("The grammar asks for a control token.")
        forced.reverse()
        return forced

    def _without_space(self) -> np.ndarray:
        """The first tokens of the form without a space: not those whose own space would be dropped."""
        return self._mask_of(self._matcher) & ~self._vocabulary.begins_with_space

    def _mask_of(self, matcher: LLMatcher) -> np.ndarray:
        # One word more: see the end-of-sequence token that llguidance gets where there is none.
        words = -(-self._vocabulary.compiled.vocab_size // 32)
        mask = np.empty(words, np.int32)
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        self._check(matcher)
        mask = mask[: self._vocabulary.words] & self._allowed
        return mask | self._vocabulary.eos if matcher.is_accepting() else mask

    def _check(self, matcher: LLMatcher) -> None:
        if matcher.is_error():
            self._raise(matcher, "")

    def _raise(self, matcher: LLMatcher, default: str) -> None:
        reason = without_state(matcher.get_error()) or default
        raise ConstraintError(f"The grammar cannot be followed any further: {reason}")
