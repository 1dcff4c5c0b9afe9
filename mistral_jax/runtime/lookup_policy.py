"""When steps that look up proposals (`mistral_jax.runtime.prompt_lookup`) pay off. This affects the speed of
completions, never their text.

The host predicts every token of a completion as the device would, from the tokens before it, and counts how often it is
right. That costs microseconds, so text that repeats nothing is decoded in plain steps without ever trying others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mistral_jax.runtime.prompt_lookup import LONGEST, SHORTEST

_LONGEST_PROMPT = 16384
"""Tokens at the end of a prompt in which earlier places are looked for: reading them takes some milliseconds."""
_SPAN = 12
"""Tokens over which it is averaged how often a prediction is right."""
_WORTH = 1.15
"""Tokens of a step over its cost from which on it is taken: predictions are a little too good, as they know one token
more than the step before it has read."""
_STEPS = 32
"""Steps over which the tokens that they gave are averaged: predictions are exact, so this is about their cost."""
_FIRST_GAIN = 2.0
_PAUSE = 64
"""Plain steps after those with proposals that gave too little."""


class Repetition:
    """How well a sequence's tokens are predicted by earlier places.

    Args:
      prompt: its tokens.
    """

    def __init__(self, prompt: Sequence[int]) -> None:
        self._tokens: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}
        """The token after the latest place of some tokens."""
        self.share = 0.0
        """Predictions that were right, of the last ones."""
        for token in prompt[-_LONGEST_PROMPT:]:
            self._add(token)

    def push(self, token: int) -> None:
        """The next token of the completion."""
        self.share += ((self._predicted() == token) - self.share) / _SPAN
        self._add(token)

    def tokens(self, most: int) -> float:
        """The tokens that a step of at most `most` gives, as expected by that share."""
        return (1 - self.share**most) / (1 - self.share) if self.share < 1 else most

    def _predicted(self) -> int | None:
        for count in range(min(LONGEST, len(self._tokens)), SHORTEST - 1, -1):
            if (token := self._after.get(tuple(self._tokens[-count:]))) is not None:
                return token
        return None

    def _add(self, token: int) -> None:
        newest = self._tokens
        for count in range(SHORTEST, min(LONGEST, len(newest)) + 1):
            self._after[tuple(newest[-count:])] = token
        newest.append(token)


class LookupPolicy:
    """Chooses between plain steps and those with proposals; one for each thread that decodes.

    Args:
      costs: time of such a step relative to a plain one, by number of rows.
    """

    def __init__(self, costs: Mapping[int, float]) -> None:
        self._costs = dict(costs)
        self._sequences: dict[int, Repetition] = {}
        self._gain = _FIRST_GAIN
        self._pause = 0

    def measured(self, costs: Mapping[int, float]) -> None:
        """Replace the costs."""
        self._costs = dict(costs)

    def push(self, key: int, prompt: Sequence[int], token: int) -> None:
        """A token of a sequence was read.

        Args:
          key: of the sequence.
          prompt: of the sequence.
        """
        repetition = self._sequences.get(key)
        if repetition is None:
            repetition = self._sequences[key] = Repetition(prompt)
        repetition.push(token)

    def forget(self, key: int) -> None:
        self._sequences.pop(key, None)

    def chooses(self, rows: Mapping[int, int], bucket: int) -> bool:
        """Whether the next step looks up proposals.

        Args:
          rows: by key of the sequence, the most tokens that the step may give it.
          bucket: number of rows of its program.
        """
        cost = self._costs.get(bucket)
        if cost is None:
            return False
        if self._pause:
            self._pause -= 1
            return False
        known = [(self._sequences.get(key), most) for key, most in rows.items()]
        expected = sum(1.0 if repetition is None else repetition.tokens(most) for repetition, most in known)
        return expected / len(rows) >= _WORTH * cost

    def observe(self, emitted: Sequence[int], bucket: int) -> None:
        """Record a step with proposals: the tokens that each row got."""
        cost = self._costs.get(bucket, 1.0)
        self._gain += (sum(emitted) / len(emitted) / cost - self._gain) / _STEPS
        if self._gain < 1.0:
            self._gain, self._pause = _FIRST_GAIN, _PAUSE
