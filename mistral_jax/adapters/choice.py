"""Which adapters one sequence uses: plain data, known to the server and to the runner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BASE_NAME = "base"
"""Stands for the model without any adapter, where an adapter can be named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterChoice:
    """What decides the weights of the adapters for a sequence. The default is the base model."""

    weights: tuple[tuple[int, float], ...] = ()
    """Fixed weights: (number of the adapter, weight) pairs; (n, 1.0) alone is that LoRA as it was trained."""
    xlora: bool = False
    """The X-LoRA classifier decides, for each token; `weights` are empty then."""
    freeze_after: int | None = None
    """Non-granular scalings: keep those of this answer token (1: the first) for all that follow. None: never.

    An approximation. It makes the scaling pass needless from there on.
    """

    def __post_init__(self) -> None:
        if self.xlora and self.weights:
            raise ValueError("weights are given, and X-LoRA is to decide them: expected one of the two")
        if self.freeze_after is not None and (self.freeze_after < 1 or not self.xlora):
            raise ValueError(f"freeze_after is {self.freeze_after}; expected a number from 1 on, and X-LoRA")

    def fixed_weights(self, adapters: int) -> np.ndarray:
        """float32 [A]: the fixed weight of each of so many adapters; 0 for those that have none."""
        fixed = np.zeros((adapters,), np.float32)
        for number, weight in self.weights:
            fixed[number] = weight
        return fixed

    def needs_scaling(self, step: int) -> bool:
        """Whether decode step number `step` of the sequence needs the scaling pass; step 0 runs the prompt's last
        token."""
        return self.xlora and (self.freeze_after is None or step <= self.freeze_after)


BASE = AdapterChoice()
"""No adapter at all."""
