"""Which passes a decode step runs, and when decoding ahead pays (see `mistral_jax.runtime.ahead` for what it is). That
decides how fast an answer comes, never what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mistral_jax.adapters.choice import AdapterChoice

USUAL_COST = 0.6
"""Time of a step ahead in steps of two passes, where nobody measured it."""
_SPAN = 16
"""Steps over which what was observed is averaged."""
_PROBE_EVERY, _PROBE = 96, 8
"""While it does not pay, so many steps in so many are tried all the same: the text may have become easier to guess."""


class Passes(NamedTuple):
    """What `Runner.decode` is to run beside the scaled pass."""

    scaling: bool
    """X-LoRA's scaling pass."""
    ahead: bool
    """It is that of the next token."""


class AheadPolicy:
    """One for each thread that decodes.

    A step of two passes gives each row a token. A step ahead takes less time, the `cost`, and gives some rows none; it
    pays as long as the share of rows that got one is above the cost.
    """

    def __init__(self, costs: Mapping[int, float], *, possible: bool = True) -> None:
        """Args:
        costs: by number of rows of a step.
        possible: whether the runner has such steps at all.
        """
        self._costs = dict(costs)
        self._possible = possible
        self._share = 1.0
        self._plain_steps = 0
        self._probing = 2 * _SPAN

    def passes(self, steps: Sequence[tuple[AdapterChoice, int]], rows: int) -> Passes:
        """What the next step is to run.

        Args:
          steps: for each sequence in it what it uses, and the number of this step (see `AdapterChoice.needs_scaling`).
          rows: of the step.
        """
        scaling = any(choice.needs_scaling(step) for choice, step in steps)
        # When weights are frozen would not be known here: a row may have fewer tokens than steps.
        may = scaling and self._possible and all(choice.freeze_after is None for choice, _ in steps)
        return Passes(scaling, may and self.choose(rows))

    def choose(self, rows: int) -> bool:
        """Whether the next step, of so many rows, is to run ahead."""
        if self._probing > 0:
            self._probing -= 1
            return True
        if self._share > self._costs.get(rows, USUAL_COST):
            return True
        self._plain_steps += 1
        if self._plain_steps >= _PROBE_EVERY:
            self._plain_steps, self._probing = 0, _PROBE
        return False

    def observe(self, emitted: int, rows: int) -> None:
        """Take note of a step ahead: rows that got a token, of how many."""
        if rows:
            self._share += (emitted / rows - self._share) / _SPAN
