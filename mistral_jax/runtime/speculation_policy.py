"""Which passes a decode step runs, and when speculative steps (`mistral_jax.runtime.xlora_speculation`) pay off. This
affects the speed of a completion, never its text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mistral_jax.adapters.choice import AdapterChoice

USUAL_COST = 0.6
"""Time of a speculative step relative to a step of two passes, if it was not measured."""
_SPAN = 16
"""Number of steps over which the observed share is averaged."""
_PROBE_EVERY, _PROBE = 96, 8
"""While speculation does not pay off, `_PROBE` speculative steps are tried after every `_PROBE_EVERY` plain ones: the
text may have become easier to guess."""


class Passes(NamedTuple):
    """What `Runner.decode` runs besides the scaled pass."""

    scaling: bool
    """Whether X-LoRA's scaling pass runs."""
    speculative: bool
    """Whether the scaling pass is that of a guessed next token."""


class SpeculationPolicy:
    """Chooses between plain and speculative steps; one instance for each thread that decodes.

    A step of two passes gives each row a token. A speculative step takes `cost` times as long (less than 1), and gives
    some rows none. It pays off while the share of rows that get a token is above the cost.
    """

    def __init__(self, costs: Mapping[int, float], *, possible: bool = True) -> None:
        """Args:
        costs: time of a speculative step relative to a step of two passes, by number of rows.
        possible: whether the runner has speculative steps.
        """
        self._costs = dict(costs)
        self._possible = possible
        self._share = 1.0
        self._plain_steps = 0
        self._probing = 2 * _SPAN

    def measured(self, costs: Mapping[int, float]) -> None:
        """Replace the costs."""
        self._costs = dict(costs)

    def passes(self, steps: Sequence[tuple[AdapterChoice, int]], rows: int) -> Passes:
        """Choose what the next step runs.

        Args:
          steps: for each sequence, its adapters and the number of this step (see `AdapterChoice.needs_scaling`).
          rows: number of rows of the step.
        """
        scaling = any(choice.needs_scaling(step) for choice, step in steps)
        # Not with `freeze_after`: a row may have fewer tokens than steps, so when it freezes is not known here.
        may = scaling and self._possible and all(choice.freeze_after is None for choice, _ in steps)
        return Passes(scaling, may and self.choose(rows))

    def choose(self, rows: int) -> bool:
        """Whether the next step, of `rows` rows, is speculative."""
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
        """Record a speculative step: `emitted` of its `rows` rows got a token."""
        if rows:
            self._share += (emitted / rows - self._share) / _SPAN
