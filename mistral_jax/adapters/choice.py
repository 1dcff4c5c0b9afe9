"""Which adapters a sequence uses: plain data, shared by server and runner."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BASE_NAME = "base"
"""Name of the model without adapters, wherever an adapter can be named."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterChoice:
    """Where a sequence's adapter weights come from. The default is the base model."""

    weights: tuple[tuple[int, float], ...] = ()
    """Fixed adapter weights: (adapter number, weight) pairs; a single (n, 1.0) is that LoRA as it was trained."""
    xlora: bool = False
    """The X-LoRA classifier gives the adapter weights of each token; `weights` is then empty."""
    freeze_after: int | None = None
    """Non-granular scalings: keep those of this completion token (1: the first) for all later ones; None: never.

    An approximation, which saves the scaling pass from then on.
    """

    def __post_init__(self) -> None:
        if self.xlora and self.weights:
            raise ValueError("fixed weights together with X-LoRA: expected one of the two")
        if self.freeze_after is not None and (self.freeze_after < 1 or not self.xlora):
            raise ValueError(f"freeze_after is {self.freeze_after}; expected a positive number, together with X-LoRA")

    def fixed_weights(self, adapters: int) -> np.ndarray:
        """float32 [A] for a bank of `adapters`: the fixed weight of each adapter, else 0."""
        fixed = np.zeros((adapters,), np.float32)
        for number, weight in self.weights:
            fixed[number] = weight
        return fixed

    def needs_scaling(self, step: int) -> bool:
        """Whether the sequence's decode step `step` needs the scaling pass; step 0 runs the prompt's last token."""
        return self.xlora and (self.freeze_after is None or step <= self.freeze_after)


BASE = AdapterChoice()
"""The base model, without adapters."""
