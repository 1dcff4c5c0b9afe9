"""Results of a `LanguageModel`: completions, and analyses of a text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from conversion.adapters.modules import ModuleKey
from mistral_jax.runtime.sampling.sample import Sampled


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished completion."""

    text: str
    tokens: tuple[Sampled, ...]
    """Without the end-of-sequence token; with log-probabilities if `SamplingParams.logprobs` is set."""
    finish_reason: str
    """stop, length or error"""
    stop_reason: int | str | None = None
    """The stop string, or the id of `stop_token_ids`, that ended it."""
    prompt_tokens: int
    completion_tokens: int
    adapters: tuple[str, ...] = ()
    """Names of the model's A adapters."""
    adapter_weights: np.ndarray | None = field(default=None, compare=False)
    """float32 [T, M, A]: the weight of each adapter that predicted each of the `tokens`, for the M modules of
    `Scalings.modules` (M = 1 for all modules without a layerwise classifier). None without `keep_weights`, or if the
    model has no adapters."""


@dataclass(frozen=True, kw_only=True)
class TextLogprobs:
    """Log-probabilities of a text, token by token."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: np.ndarray
    """float32 [T]: natural log-probability of each token given those before it; NaN for the first."""

    @property
    def perplexity(self) -> float:
        return float(np.exp(-np.nanmean(self.logprobs)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scalings:
    """X-LoRA scalings of a text.

    Row t is the classifier's output after token t. It weights the adapters while that token runs, and so affects the
    prediction of token t + 1.

    `scalings[10:20]` is the same for a slice of the tokens.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    """Each token as the vocabulary spells it."""
    adapters: tuple[str, ...]
    """Names of the E experts."""
    modules: tuple[ModuleKey, ...]
    """The linear layer of each of the M columns; empty if the classifier is not layerwise, with one column for all."""
    values: np.ndarray
    """float32 [T, M, E]: the classifier's output, after its softmax if it has one, before top-k."""
    weights: np.ndarray
    """float32 [T, M, E]: the adapter weights: after top-k and the softmax over it, times the global weight."""
    softmax: bool
    """Whether the values of a token and module are positive and sum to 1."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, stretch: slice) -> Scalings:
        if not isinstance(stretch, slice):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{stretch!r} is not a slice of tokens; write scalings[3:4] for a single one")
        return replace(
            self,
            tokens=self.tokens[stretch],
            texts=self.texts[stretch],
            values=self.values[stretch],
            weights=self.weights[stretch],
        )
