"""What a `LanguageModel` gives back: finished answers, and what the model makes of a text."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from conversion.adapters.modules import ModuleKey
from mistral_jax.runtime.sampling import Sampled


@dataclass(frozen=True, kw_only=True)
class Generation:
    """A finished answer."""

    text: str
    tokens: tuple[Sampled, ...]
    """With log-probabilities if `SamplingParams.logprobs` asked for them; the end-of-sequence token is not among
    them."""
    finish_reason: str
    """stop, length or error"""
    prompt_tokens: int
    completion_tokens: int
    adapters: tuple[str, ...] = ()
    """Names of the A adapters of the model that answered."""
    adapter_weights: np.ndarray | None = field(default=None, compare=False)
    """float32 [T, M, A]: the weight that each adapter had while each of the `tokens` was predicted, in each of M sets
    of modules (see `Scalings.modules`; one set of all modules where the classifier is not layerwise, or there is none).
    None where `keep_weights` did not ask for it, or the model has no adapters."""


@dataclass(frozen=True, kw_only=True)
class TextLogprobs:
    """How likely a model finds a text, token by token."""

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    logprobs: np.ndarray
    """float32 [T]: natural log-probability of each token after those before it; NaN for the first."""

    @property
    def perplexity(self) -> float:
        return float(np.exp(-np.nanmean(self.logprobs)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Scalings:
    """What the X-LoRA classifier makes of a text.

    Row t is what the classifier says once it has read token t: it weights the adapters while that token runs, and so
    decides about the prediction of token t + 1.

    `scalings[10:20]` is the same for a stretch of the tokens.
    """

    tokens: tuple[int, ...]
    texts: tuple[str, ...]
    """Each token as the vocabulary writes it."""
    adapters: tuple[str, ...]
    """Names of the E experts."""
    modules: tuple[ModuleKey, ...]
    """The linear layer that each of the M columns is for; empty where the classifier is not layerwise: the one column
    is then for all of them."""
    values: np.ndarray
    """float32 [T, M, E]: what the classifier says, after its softmax if it has one, before top-k."""
    weights: np.ndarray
    """float32 [T, M, E]: what this amounts to: after top-k and the softmax over it, times the global weight."""
    softmax: bool
    """Whether the values of a token and module are positive and add up to 1."""

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, stretch: slice) -> Scalings:
        if not isinstance(stretch, slice):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"{stretch!r} is no stretch of tokens; write scalings[3:4] for a single one")
        return replace(
            self,
            tokens=self.tokens[stretch],
            texts=self.texts[stretch],
            values=self.values[stretch],
            weights=self.weights[stretch],
        )
