"""Constrained sequences in the decode loop: the masks of their next tokens, computed while the device is busy.

A mask depends on the token before, which the device samples. The loop dispatches the next forward pass first, which
does not need the mask, then reads the token, and computes the mask while that pass runs:

    device   forward r | sample r | forward r + 1          | sample r + 1
    host                           read token r, mask r + 1 ┘

A mask that is not ready in time holds its own row only: the row is not sampled, and its forward pass is repeated in the
next step. Tokens do not depend on any of this.

Where the constraint leaves no choice, it knows several tokens at once. The row then runs them in one forward pass (a
*run*, see `mistral_jax.runtime.step.Run`), if that is faster for the whole batch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

import numpy as np

from mistral_jax.grammar.constraint import Constraint, ConstraintError

_MOST_THREADS = 4


class ConstrainedRow:
    """The host's state of one constrained sequence.

    Args:
      constraint: of this sequence alone.
      words: length of a mask.
      takes_runs: whether tokens without a choice may be run together. They have no log-probabilities.
    """

    def __init__(self, constraint: Constraint, *, words: int, takes_runs: bool) -> None:
        self._constraint = constraint
        self._takes_runs = takes_runs
        self._mask = np.zeros((words,), np.int32)
        self._forced: tuple[int, ...] = ()
        self._work: Future[None] | None = None
        self._ready_run: tuple[int, ...] = ()
        self.extras: tuple[int, ...] = ()
        """Tokens appended by the last forward pass, which follow the token that was sampled before it."""

    @property
    def complete(self) -> bool:
        """Whether nothing may follow but an end-of-sequence token; the mask must be ready."""
        return self._constraint.complete

    def advance(self, pool: ThreadPoolExecutor, tokens: Sequence[int]) -> None:
        """Start computing the mask of the next token, after these tokens."""
        self._work = pool.submit(self._compute, tuple(tokens))

    def _compute(self, tokens: tuple[int, ...]) -> None:
        for token in tokens:
            self._constraint.push(token)
        self._forced = tuple(self._constraint.forced())
        self._constraint.fill(self._mask)

    @property
    def work(self) -> Future[None] | None:
        """The computation of the mask; None: there is none."""
        return self._work

    def error(self) -> str | None:
        """Why the constraint cannot go on; None: it can. The computation must be done."""
        if self._work is None:
            return None
        error = self._work.exception()
        if error is None:
            return None
        if isinstance(error, ConstraintError):
            return str(error)
        raise error

    def sampled(self, *, speculative: bool) -> np.ndarray:
        """The mask, which a step samples with now.

        Args:
          speculative: whether the step may give no token.
        """
        self._ready_run = self._forced if self._takes_runs and not speculative else ()
        return self._mask

    def held(self) -> None:
        """The row is not sampled by this step."""
        self._ready_run = ()

    def next_run(self, *, most: int) -> tuple[int, ...]:
        """Tokens that the next forward pass may run, at most `most`: the one that is being sampled, and those after it.
        Empty if there is a choice."""
        run = self._ready_run[:most]
        return run if len(run) > 1 else ()

    def take_run(self, run: Sequence[int]) -> None:
        """The next forward pass runs these tokens; empty: only the newest."""
        self.extras, self._ready_run = tuple(run[1:]), ()

    def take_extras(self) -> tuple[int, ...]:
        """Remove and return `extras`."""
        extras, self.extras = self.extras, ()
        return extras


def threads() -> ThreadPoolExecutor:
    """Threads that compute masks. They start with the first mask."""
    return ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1), thread_name_prefix="mask")


def wait_for_masks[S](rows: Mapping[S, ConstrainedRow], *, seconds: float | None) -> set[S]:
    """Wait until the masks of these rows are ready, and return the rows that are.

    Args:
      seconds: longest time to wait; None: until at least one is ready.
    """
    waiting = {row.work: key for key, row in rows.items() if row.work is not None}
    done, pending = wait(waiting, timeout=_LONGEST if seconds is None else seconds)
    if seconds is None and not done:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
    late = {waiting[work] for work in pending}
    return {key for key in rows if key not in late}


_LONGEST = 0.05
"""Seconds to wait for all masks of a step where every row is constrained."""


def worthwhile_runs[S](
    runs: Mapping[S, tuple[int, ...]], *, rows: int, constrained: int, cost: float
) -> Mapping[S, tuple[int, ...]]:
    """The runs to use in the next step: all, or none.

    Args:
      runs: by row, the tokens that it could run.
      rows: number of rows of the step.
      constrained: how many of them are constrained. The others gain nothing by a longer step, so it may hardly be any
        longer if there are others.
      cost: time of a forward pass with runs relative to one without.
    """
    gained = sum(len(run) - 1 for run in runs.values())
    most = 1 + gained / rows if constrained == rows else _NEARLY_FREE
    return runs if gained and cost < most else {}


_NEARLY_FREE = 1.03
