"""The weights of the adapters, beside the tokens of one answer.

A token's text may leave the engine some steps after the token was sampled. Its weights wait here for as long.
"""

from __future__ import annotations

from collections import deque

import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from serving.engine.messages import WantedScalings


class ScalingsTrack:
    """What predicted the tokens of one answer.

    Args:
      columns: M, sets of weights of the model: one for each adapted module, or one for all.
      adapters: adapters of the model, used and free.
    """

    def __init__(self, wanted: WantedScalings, choice: AdapterChoice, *, columns: int, adapters: int) -> None:
        self._wanted = wanted
        self._waiting: deque[np.ndarray] = deque()
        self._last = self._reduced(np.tile(choice.fixed_weights(adapters), (columns, 1)))

    def push(self, weights: np.ndarray | None) -> None:
        """Take the weights of the next token.

        Args:
          weights: float32 [M, A]; None: they are as before.
        """
        if weights is not None:
            self._last = self._reduced(weights)
        self._waiting.append(self._last)

    def take(self) -> np.ndarray:
        """Those of the oldest token that was not taken yet: float32 [A], or for `full` [M, A], of the adapters that are
        wanted."""
        return self._waiting.popleft()

    def _reduced(self, weights: np.ndarray) -> np.ndarray:
        chosen = weights[:, list(self._wanted.adapters)]
        return chosen.copy() if self._wanted.detail == "full" else chosen.mean(axis=0)
