"""The adapter weights for each token of one completion.

A token's text may leave the engine some steps after the token was sampled. Its weights are queued here until then.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from serving.engine.messages import WantedScalings


class ScalingsTrack:
    """Queue of the adapter weights that predicted each token of one completion.

    Args:
      columns: M, sets of weights: one for each adapted module, or one for all.
      adapters: capacity of the adapter bank, used and free places.
    """

    def __init__(self, wanted: WantedScalings, choice: AdapterChoice, *, columns: int, adapters: int) -> None:
        self._wanted = wanted
        self._waiting: deque[np.ndarray] = deque()
        self._last = self._reduced(np.tile(choice.fixed_weights(adapters), (columns, 1)))

    def push(self, weights: np.ndarray | None) -> None:
        """Take the weights of the next token.

        Args:
          weights: float32 [M, A]; None: unchanged since the last token.
        """
        if weights is not None:
            self._last = self._reduced(weights)
        self._waiting.append(self._last)

    def take(self) -> np.ndarray:
        """Remove and return the weights of the oldest token in the queue: float32 [A], or [M, A] for `full`, of the
        requested adapters."""
        return self._waiting.popleft()

    def _reduced(self, weights: np.ndarray) -> np.ndarray:
        chosen = weights[:, list(self._wanted.adapters)]
        return chosen.copy() if self._wanted.detail == "full" else chosen.mean(axis=0)
