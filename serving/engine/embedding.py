"""Turns the pooled hidden states of one prompt into an embedding."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from mistral_jax.runtime.pooling import PooledPrompt
from mistral_jax.runtime.sampling.sample import Sampled
from mistral_jax.tokenizer.base import Tokenizer
from serving.engine.messages import Event, Request
from serving.engine.output import NOT_NUMBERS
from serving.engine.scalings import ScalingsTrack


class EmbeddingOutput:
    """Output of `Work.EMBED`. Implements `serving.engine.work.Output`."""

    def __init__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        *,
        eos_ids: Collection[int],
        max_tokens: int,
        scalings: ScalingsTrack | None = None,
    ) -> None:
        del tokenizer, eos_ids, max_tokens, scalings  # of completions
        self._request = request
        self._pooled = PooledPrompt()

    def push_prompt(self, results: np.ndarray) -> Event:
        """Process the next chunk, float32 [2, D]. The event tells nothing."""
        self._pooled.add(results)
        return Event(request_id=self._request.request_id)

    def push(self, sampled: Sampled, weights: np.ndarray | None = None) -> Event:
        """It generates no tokens."""
        raise TypeError("an embedding has no tokens")

    def end(self) -> Event:
        """The last event, with the embedding."""
        request = self._request
        vector = self._pooled.vector(request.pooling, tokens=len(request.prompt))
        if not np.isfinite(vector).all():
            return Event(request_id=request.request_id, finish_reason="error", error=NOT_NUMBERS)
        return Event(request_id=request.request_id, finish_reason="stop", embedding=vector)
