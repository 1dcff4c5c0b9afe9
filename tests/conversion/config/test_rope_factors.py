"""Llama 3's rope as factors, and back."""

from __future__ import annotations

import numpy as np
import pytest

from conversion.config.rope_factors import Llama3Scaling, find_llama3, llama3_factors
from mistral_jax.model.config import RopeConfig
from mistral_jax.model.rope import inverse_frequencies


def scaling(factor: float, low: float, high: float, context: int) -> Llama3Scaling:
    return Llama3Scaling(factor=factor, low_freq_factor=low, high_freq_factor=high, original_context=context)


CASES = [
    (scaling(8, 1, 4, 8192), 500000.0, 128),
    (scaling(32, 1, 4, 8192), 500000.0, 64),
    (scaling(8, 1, 4, 4096), 500000.0, 128),
    (scaling(2.5, 1, 4, 5000), 1e6, 128),
    (scaling(8, 1, 4, 3000), 1e4, 20),
    (scaling(16, 1, 6, 7000), 500000.0, 128),
    (scaling(16, 2, 7, 6000), 500000.0, 128),
    (scaling(4, 1, 4, 64), 500000.0, 32),
]


@pytest.mark.parametrize(("known", "theta", "head_dim"), CASES)
def test_factors_divide_plain_frequencies_to_those_of_the_rule(
    known: Llama3Scaling, theta: float, head_dim: int
) -> None:
    rope = RopeConfig(
        theta=theta,
        kind="llama3",
        factor=known.factor,
        low_freq_factor=known.low_freq_factor,
        high_freq_factor=known.high_freq_factor,
        original_max_position_embeddings=known.original_context,
    )
    factors = llama3_factors(known, theta=theta, head_dim=head_dim)
    plain = inverse_frequencies(RopeConfig(theta=theta), head_dim).astype(np.float64)
    np.testing.assert_allclose(plain / factors, inverse_frequencies(rope, head_dim), rtol=1e-6)


@pytest.mark.parametrize(("known", "theta", "head_dim"), CASES)
def test_parameters_are_found_from_factors_in_float32(known: Llama3Scaling, theta: float, head_dim: int) -> None:
    factors = llama3_factors(known, theta=theta, head_dim=head_dim).astype(np.float32).astype(np.float64)
    found = find_llama3(factors, theta=theta)
    assert found is not None
    np.testing.assert_allclose(llama3_factors(found, theta=theta, head_dim=head_dim), factors, rtol=1e-5)
    if head_dim >= 64:  # enough dimensions to tell; only ratios of context and thresholds matter
        for ours, theirs in (
            (found.original_context / found.low_freq_factor, known.original_context / known.low_freq_factor),
            (found.original_context / found.high_freq_factor, known.original_context / known.high_freq_factor),
        ):
            assert ours == pytest.approx(theirs, rel=1e-3)


def test_of_several_contexts_that_would_do_the_given_one_is_found() -> None:
    """Where no frequency lies between the thresholds, any context between the two nearest wavelengths gives the same
    factors."""
    factors = llama3_factors(scaling(8, 1, 4, 8192), theta=1e8, head_dim=4)
    assert find_llama3(factors, theta=1e8, contexts=[3000]) == scaling(8, 1, 4, 8192)
    factors = llama3_factors(scaling(8, 1, 4, 3000), theta=1e4, head_dim=20)
    found = find_llama3(factors, theta=1e4, contexts=[3000])
    assert found == scaling(8, 1, 4, 3000)


@pytest.mark.parametrize("factors", [[1, 1, 1, 1], [1, 3, 2, 8], [0.5, 1, 2, 4], [2, 2, 2, 2], [1, 8, 1, 8]])
def test_other_factors_are_no_llama_3_rope(factors: list[float]) -> None:
    assert find_llama3(np.array(factors, np.float64), theta=1e4) is None
