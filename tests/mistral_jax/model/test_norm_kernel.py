"""Normalisation by the kernel, in Pallas' interpreter."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.model import norm_kernel
from mistral_jax.model.norm_kernel import kernel_works, normalised, plainly_normalised
from mistral_jax.quant.placement import Placement


@settings(max_examples=20, deadline=None)
@given(
    features=st.sampled_from([1, 7, 32, 100, 256, 1031, 5120]),
    rows=st.integers(1, 5),
    dtype=st.sampled_from(["float32", "bfloat16", "float16"]),
    seed=st.integers(0, 1000),
)
def test_equals_the_exact_norm(features: int, rows: int, dtype: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((rows, 1, features)) * 10.0 ** rng.integers(-3, 4), dtype)
    weight = jnp.asarray(rng.uniform(-2, 2, features), dtype)
    found = normalised(x, weight, 1e-6)
    assert (found.dtype, found.shape) == (x.dtype, x.shape)
    wide = np.asarray(x, np.float64)
    expected = wide / np.sqrt(np.mean(wide**2, axis=-1, keepdims=True) + 1e-6) * np.asarray(weight, np.float64)
    # The result is rounded before and after it is multiplied by the weight.
    tolerance = 1e-6 if dtype == "float32" else 2 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=tolerance, atol=1e-7)


def test_a_row_has_the_same_bits_for_every_number_of_rows() -> None:
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((33, 320)), jnp.bfloat16)
    weight = jnp.asarray(rng.uniform(0.5, 2, 320), jnp.bfloat16)
    together = np.asarray(normalised(x, weight, 1e-5))
    for rows in (1, 2, 16):
        np.testing.assert_array_equal(normalised(x[:rows], weight, 1e-5), together[:rows])


def test_slopes_are_those_of_the_plain_form() -> None:
    rng = np.random.default_rng(0)
    x, weight = (
        jnp.asarray(rng.standard_normal((3, 40)), jnp.float32),
        jnp.asarray(rng.uniform(0.5, 2, 40), jnp.float32),
    )
    found, expected = (
        jax.grad(lambda x, weight, form=form: jnp.sum(jnp.sin(form(x, weight, 1e-5))), argnums=(0, 1))(x, weight)
        for form in (normalised, plainly_normalised)
    )
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_cpu_does_without_and_a_gpu_is_asked(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kernel_works(Placement.default(), 64, dtype)
    monkeypatch.setattr(Placement, "is_one_gpu", True)
    norm_kernel._agrees.cache_clear()
    assert kernel_works(Placement.default(), 100, dtype)
    norm_kernel._agrees.cache_clear()
    monkeypatch.setattr(norm_kernel, "normalised", lambda x, weight, eps: 1.1 * normalised(x, weight, eps))
    assert not kernel_works(Placement.default(), 100, dtype)
    norm_kernel._agrees.cache_clear()
