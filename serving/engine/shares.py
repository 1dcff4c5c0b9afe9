"""How much of each adapter X-LoRA used lately, from a few rounds of decoding: for a gauge.

A round's weights are read from the device once in `INTERVAL` seconds, and only while somebody asks for the shares:
nothing is read for a gauge that nobody looks at.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

INTERVAL = 1.0
"""Seconds between two rounds that are read."""
ROUNDS = 60
"""Rounds over which the mean is taken."""
ASKED_FOR = 300.0
"""Seconds after a question in which rounds are read."""


class AdapterShares:
    """Times are seconds of a monotonic clock. One thread calls `is_due` and `add`; any may call `ask`."""

    def __init__(self) -> None:
        self._rounds: deque[np.ndarray] = deque(maxlen=ROUNDS)
        self._mean: tuple[float, ...] = ()
        self._asked = -np.inf
        self._next = -np.inf

    def ask(self, now: float) -> tuple[float, ...]:
        """The mean weight of each adapter, by number; empty as long as no round was read."""
        self._asked = now
        return self._mean

    def is_due(self, now: float) -> bool:
        """Whether to read this round. If so, the next is due after `INTERVAL`."""
        if now < self._next or now > self._asked + ASKED_FOR:
            return False
        self._next = now + INTERVAL
        return True

    def add(self, weights: np.ndarray, rows: Sequence[int]) -> None:
        """Take a round: float32 [R, M, A], of which `rows` used X-LoRA. If none did, the next round is due."""
        if not rows:
            self._next = -np.inf
        else:
            self._rounds.append(weights[list(rows)].mean(axis=(0, 1)))
            self._mean = tuple(np.mean(self._rounds, axis=0).tolist())
