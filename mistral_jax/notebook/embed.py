"""Embeddings of texts from a runner, one after another."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.runtime.pooling import PooledPrompt, Pooling, normalized
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams

_NO_TOKENS = SamplingParams(max_tokens=0, seed=0)


def embed(
    runner: Runner,
    texts: Sequence[Sequence[int]],
    choice: AdapterChoice,
    *,
    pooling: Pooling,
    dimensions: int | None = None,
) -> np.ndarray:
    """float32 [len(texts), D]: a vector of length 1 for each text, given as token ids.

    Raises:
      ValueError: a text is empty or longer than the runner's length, or a vector has fewer dimensions.
    """
    hidden = runner.config.hidden_size
    if dimensions is not None and not 1 <= dimensions <= hidden:
        raise ValueError(f"dimensions is {dimensions}; expected 1 to {hidden}, which this model's embeddings have")
    state = runner.new_state()
    vectors: list[np.ndarray] = []
    for tokens in texts:
        state = runner.admit(state, 0, tokens, _NO_TOKENS, choice)
        pooled = PooledPrompt()
        for chunk in runner.chunks(len(tokens), embed=True):
            done = runner.prefill(state, 0, tokens, chunk, scaling=choice.xlora)
            state = done.state
            pooled.add(np.asarray(done.pooled))
        vectors.append(normalized(pooled.vector(pooling, tokens=len(tokens)), dimensions))
    return np.stack(vectors) if vectors else np.zeros((0, dimensions or hidden), np.float32)
