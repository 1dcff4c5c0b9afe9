"""The adapter weights in the JSON of a completion: for the whole, and for the chunks of a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec import UNSET

from serving.api.schemas import TokenWeights, XLoRAScalings
from serving.api.service.asked import ReportedScalings
from serving.engine.messages import TokenScalings

_DECIMALS = 6


class ScalingsReport:
    """The adapter weights of one choice so far."""

    def __init__(self, reported: ReportedScalings) -> None:
        self._reported = reported
        self._tokens: list[TokenScalings] = []
        self._sum = np.zeros((len(reported.adapters),), np.float64)
        self._count = 0
        self._modules_sent = False

    def take(self, tokens: Sequence[TokenScalings]) -> None:
        """Keep the weights of the next tokens."""
        if self._reported.detail == "summary":
            for token in tokens:
                self._sum += token.weights
            self._count += len(tokens)
        else:
            self._tokens += tokens

    def chunk(self, tokens: Sequence[TokenScalings]) -> XLoRAScalings:
        """The weights in a stream's chunk, whose tokens must have been taken before: the summary so far, or those of
        the chunk's tokens."""
        first, self._modules_sent = not self._modules_sent, True
        return self._json(tokens, modules=first)

    def last_chunk(self) -> XLoRAScalings | None:
        """The weights in a stream's last chunk: the summary."""
        return self._json(()) if self._reported.detail == "summary" else None

    def whole(self) -> XLoRAScalings:
        return self._json(self._tokens, modules=True)

    def _json(self, tokens: Sequence[TokenScalings], *, modules: bool = False) -> XLoRAScalings:
        reported = self._reported
        scalings: list[float | TokenWeights] | None = None
        if reported.detail != "summary":
            scalings = []
            scalings += [TokenWeights(token=token.text, weights=_rounded(token.weights)) for token in tokens]
        elif self._count:
            scalings = _rounded(self._sum / self._count)
        named = list(reported.modules) if reported.detail == "full" and modules else UNSET
        return XLoRAScalings(adapters=list(reported.adapters), scalings=scalings, modules=named)


def _rounded(weights: np.ndarray) -> list[Any]:
    return np.round(weights.astype(np.float64), _DECIMALS).tolist()
