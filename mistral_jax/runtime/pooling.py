"""Embeddings of texts: the hidden states of their tokens, after the final norm, pooled to one vector. Imports no JAX.

Axis letter: D model dimension.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

Pooling = Literal["mean", "last"]
"""The mean over all tokens, or the last token's."""


class PooledPrompt:
    """Collects the results of a prompt's chunks, in their order."""

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None
        self._last: np.ndarray | None = None

    def add(self, chunk: np.ndarray) -> None:
        """Take the next chunk.

        Args:
          chunk: float32 [2, D], see `mistral_jax.runtime.calls.Prefilled.pooled`.
        """
        # Chunks depend on the prompt's length only, and so do the bits of the sum.
        total = chunk[0].astype(np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self._last = chunk[1]

    def vector(self, pooling: Pooling, *, tokens: int) -> np.ndarray:
        """float32 [D] of the whole prompt, which has this many tokens."""
        assert self._sum is not None
        assert self._last is not None
        return self._last if pooling == "last" else (self._sum / tokens).astype(np.float32)


def normalized(vector: np.ndarray, dimensions: int | None = None) -> np.ndarray:
    """The first `dimensions` of a vector (None: all), float32 [D], scaled to length 1; zeros stay zeros."""
    kept = vector[:dimensions].astype(np.float64)
    length = float(np.sqrt(np.sum(kept * kept)))
    return (kept / length if length else kept).astype(np.float32)
