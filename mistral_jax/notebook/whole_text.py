"""Passes over whole texts, without a cache: hidden states, logits and X-LoRA scalings after every token.

Memory grows with the square of a text's length. Texts are padded to powers of two, so that few lengths are compiled;
causal attention does not see the padding.

Axis letters: T tokens, V vocabulary, M scaling columns, E experts, A adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.model.low_rank import AdapterBank, Mixture
from mistral_jax.model.mistral import Mistral
from mistral_jax.model.split_module import SplitModule
from mistral_jax.runtime.runner import Runner


class WholeTexts:
    """Jitted programs for a runner's model, with its adapters at the time of each call."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._classifier = None if runner.xlora is None else SplitModule.of(runner.xlora)
        self._capacity = 0 if runner.adapters is None else runner.adapters.capacity
        self._logits = jax.jit(self._logits_program, static_argnames="xlora")
        self._hidden = jax.jit(self._hidden_program, static_argnames="xlora")
        self._scalings = jax.jit(self._scalings_program)

    def logits(self, tokens: Sequence[int], choice: AdapterChoice) -> jax.Array:
        """float32 [T, V]: the logits after each token."""
        arguments = self._arguments(tokens, choice)
        return self._logits(*arguments, xlora=choice.xlora)[: len(tokens)]

    def hidden_states(self, tokens: Sequence[int], choice: AdapterChoice) -> jax.Array:
        """[T, D]: the hidden states of each token after the final norm."""
        arguments = self._arguments(tokens, choice)
        return self._hidden(*arguments, xlora=choice.xlora)[: len(tokens)]

    def _arguments(self, tokens: Sequence[int], choice: AdapterChoice) -> tuple[Any, ...]:
        adapters = self._runner.adapters
        fixed = choice.fixed_weights(self._capacity)
        # The base model runs without adapters, instead of with weights of zero.
        bank = None if adapters is None or not (choice.xlora or choice.weights) else adapters.bank
        classifier = self._classifier_weights() if choice.xlora else []
        return self._runner.split.weights, bank, classifier, _pad(tokens), fixed

    def scalings(self, tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The classifier's scalings and the resulting adapter weights, each float32 [T, M, E], from the scaling pass.

        Raises:
          ValueError: the model has no classifier.
        """
        adapters = self._runner.adapters
        if self._classifier is None or adapters is None:
            raise ValueError("the model has no X-LoRA classifier: load it with xlora=…")
        weights, classifier = self._runner.split.weights, self._classifier_weights()
        scalings, used = self._scalings(weights, adapters.bank, classifier, _pad(tokens))
        return np.asarray(scalings[: len(tokens)]), np.asarray(used[: len(tokens)])

    def _classifier_weights(self) -> list[jax.Array]:
        return [] if self._classifier is None else self._classifier.weights

    def _merge(self, weights: list[jax.Array], classifier: list[jax.Array]) -> tuple[Mistral, XLoRA]:
        assert self._classifier is not None
        return self._runner.split.merge(weights), self._classifier.merge(classifier)

    def _logits_program(self, weights: list[jax.Array], *others: Any, xlora: bool) -> jax.Array:
        model: Mistral = self._runner.split.merge(weights)
        return model.logits(self._hidden_program(weights, *others, xlora=xlora)[None])[0]

    def _hidden_program(
        self,
        weights: list[jax.Array],
        bank: AdapterBank | None,
        classifier: list[jax.Array],
        tokens: jax.Array,
        fixed: jax.Array,
        *,
        xlora: bool,
    ) -> jax.Array:
        if xlora and bank is not None:
            model, mixer = self._merge(weights, classifier)
            hidden, _ = mixer.hidden_states(model, bank, tokens, adapters=self._capacity)
            return hidden[0]
        model: Mistral = self._runner.split.merge(weights)
        mixture = None if bank is None else Mixture(bank=bank, weights=fixed[None, None, None])
        return model.hidden_states(tokens, mixture)[0]

    def _scalings_program(
        self, weights: list[jax.Array], bank: AdapterBank, classifier: list[jax.Array], tokens: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        model, mixer = self._merge(weights, classifier)
        hidden = model.hidden_states(tokens, mixer.scaling_mixture(bank, self._capacity))
        scalings = mixer.scalings(hidden)[0]
        return scalings, mixer.weights(scalings, mixer.num_experts)


def _pad(tokens: Sequence[int]) -> np.ndarray:
    """int32 [1, size]"""
    padded = np.zeros((1, max(16, 1 << (len(tokens) - 1).bit_length())), np.int32)
    padded[0, : len(tokens)] = tokens
    return padded
