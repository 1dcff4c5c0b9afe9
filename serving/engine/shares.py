"""Recent mean X-LoRA weight of each adapter, sampled from some decode rounds: for a gauge in /metrics.

Weights are read from the device once every `INTERVAL` seconds, and only while the gauge is being scraped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

INTERVAL = 1.0
"""Seconds between two sampled rounds."""
ROUNDS = 60
"""Rounds over which the mean is taken."""
ASKED_FOR = 300.0
"""Seconds after a call of `ask` during which rounds are sampled."""


class AdapterShares:
    """Times are seconds of a monotonic clock. One thread calls `is_due` and `add`; any may call `ask`."""

    def __init__(self) -> None:
        self._rounds: deque[np.ndarray] = deque(maxlen=ROUNDS)
        self._mean: tuple[float, ...] = ()
        self._asked = -np.inf
        self._next = -np.inf

    def ask(self, now: float) -> tuple[float, ...]:
        """The mean weight of each adapter, by number; empty until a round has been sampled."""
        self._asked = now
        return self._mean

    def is_due(self, now: float) -> bool:
        """Whether to sample this round. If so, the next is due after `INTERVAL`."""
        if now < self._next or now > self._asked + ASKED_FOR:
            return False
        self._next = now + INTERVAL
        return True

    def add(self, weights: Sequence[np.ndarray]) -> None:
        """Add a round's weights: of each row that used X-LoRA, float32 [M, A]. If there are none, the next round is
        due."""
        if not weights:
            self._next = -np.inf
        else:
            self._rounds.append(np.stack(weights).mean(axis=(0, 1)))
            self._mean = tuple(np.mean(self._rounds, axis=0).tolist())
