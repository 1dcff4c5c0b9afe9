"""Rope scaling as one factor for each frequency: how GGUF files carry Llama 3's, in a tensor instead of metadata.

The factor divides the frequency. Llama 3's rule leaves short wavelengths unchanged (1), stretches long ones by
`factor`, and interpolates between. Source: `modeling_rope_utils` of transformers; `generate_extra_tensors` of
llama.cpp's converter.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

Factors = np.ndarray[tuple[int], np.dtype[np.float64]]
_TOLERANCE = 1e-5
"""Relative tolerance. A converter that computes in float32 is off by up to 5e-6 where the factor is 32."""


@dataclass(frozen=True, kw_only=True)
class Llama3Scaling:
    """The parameters of the rule. Only the ratios between the context and the two thresholds matter."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


def llama3_factors(scaling: Llama3Scaling, *, theta: float, head_dim: int) -> Factors:
    """The factors [H/2], lowest dimension first."""
    rotations = scaling.original_context * _frequencies(theta, head_dim) / (2 * np.pi)
    kept = (rotations - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    kept = np.clip(kept, 0, 1)
    return 1 / ((1 - kept) / scaling.factor + kept)


def find_llama3(factors: Factors, *, theta: float, contexts: Iterable[int] = ()) -> Llama3Scaling | None:
    """Parameters that give these factors [H/2] to the accuracy of float32; None where there are none.

    Args:
      contexts: original contexts to try before others; the first that fits is taken.
    """
    factor = float(np.float32(factors.max()))
    if factor <= 1 + _TOLERANCE:
        return None
    for low, high, context in _candidates(factors, factor, theta, contexts):
        scaling = Llama3Scaling(
            factor=factor, low_freq_factor=low, high_freq_factor=high, original_context=round(context)
        )
        found = llama3_factors(scaling, theta=theta, head_dim=2 * len(factors))
        if np.allclose(found, factors, rtol=_TOLERANCE, atol=0):
            return scaling
    return None


def _candidates(
    factors: Factors, factor: float, theta: float, contexts: Iterable[int]
) -> Iterator[tuple[float, float, float]]:
    """Thresholds and contexts to try: those of all published models first, then candidates from the interpolated
    factors."""
    for context in (8192, *contexts, *(2**power for power in range(4, 21))):
        yield 1.0, 4.0, float(context)
    blended = (factors > 1 + _TOLERANCE) & (factors < factor * (1 - _TOLERANCE))
    rotations_per_token = _frequencies(theta, 2 * len(factors))[blended] / (2 * np.pi)
    kept = (1 / factors[blended] - 1 / factor) / (1 - 1 / factor)
    for share, rotations in zip(kept, rotations_per_token, strict=True):
        yield 1.0, 4.0, float((3 * share + 1) / rotations)
    if len(kept) < 2:
        return
    # kept = (context * rotations - low) / (high - low) is a straight line; its scale is free, so low is set.
    slope, intercept = np.polyfit(rotations_per_token, kept, 1)
    if intercept < 0 < slope:
        for low in (1.0, 2.0, 4.0, 0.5):
            high = low - low / intercept
            for digits in (2, 4, 8):
                yield low, round(float(high), digits), float(-low * slope / intercept)


def _frequencies(theta: float, head_dim: int) -> Factors:
    return theta ** (-np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
