"""The weights of the adapters in the JSON of a completion: for the whole, and for the chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import UNSET

from serving.api.schemas import TokenWeights, XLoRAScalings
from serving.api.service.asked import ToldScalings
from serving.engine.messages import TokenScalings

_DECIMALS = 6


class ScalingsReport:
    """What is known of one choice."""

    def __init__(self, told: ToldScalings) -> None:
        self._told = told
        self._tokens: list[TokenScalings] = []
        self._sum = np.zeros((len(told.adapters),), np.float64)
        self._count = 0
        self._modules_told = False

    def take(self, tokens: Sequence[TokenScalings]) -> None:
        """Keep the weights of the next tokens."""
        if self._told.detail == "summary":
            for token in tokens:
                self._sum += token.weights
            self._count += len(tokens)
        else:
            self._tokens += tokens

    def chunk(self, tokens: Sequence[TokenScalings]) -> XLoRAScalings:
        """What a chunk of a stream tells, whose tokens were taken before: the summary so far, or the chunk's own
        tokens."""
        first, self._modules_told = not self._modules_told, True
        return self._json(tokens, modules=first)

    def last_chunk(self) -> XLoRAScalings | None:
        """What the last chunk of a stream tells: the summary."""
        return self._json(()) if self._told.detail == "summary" else None

    def whole(self) -> XLoRAScalings:
        return self._json(self._tokens, modules=True)

    def _json(self, tokens: Sequence[TokenScalings], *, modules: bool = False) -> XLoRAScalings:
        told = self._told
        scalings: list[float | TokenWeights] | None = None
        if told.detail != "summary":
            scalings = []
            scalings += [TokenWeights(token=token.text, weights=_rounded(token.weights)) for token in tokens]
        elif self._count:
            scalings = _rounded(self._sum / self._count)
        named = list(told.modules) if told.detail == "full" and modules else UNSET
        return XLoRAScalings(adapters=list(told.adapters), scalings=scalings, modules=named)


def _rounded(weights: np.ndarray) -> list[Any]:
    return np.round(weights.astype(np.float64), _DECIMALS).tolist()
