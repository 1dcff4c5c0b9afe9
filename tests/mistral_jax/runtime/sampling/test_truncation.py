"""The edges between kept and dropped tokens, against sorting."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.sampling import truncation_kernel
from mistral_jax.runtime.sampling.truncation import kth_largest, nucleus_edge, tokens_after_xtc, typical_tokens
from tests.mistral_jax.runtime.sampling.test_sample import softmax


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-(10**6), 10**6), min_size=1, max_size=40), st.data())
def test_thekth_largest_is_exact(values, data):
    k = data.draw(st.integers(1, len(values)))
    x = np.zeros((1, 40), np.float32) - np.float32(3e38)
    x[0, : len(values)] = np.asarray(values) / 1000
    found = np.asarray(jax.jit(kth_largest)(jnp.asarray(x), jnp.asarray([[k]])))
    # -0.0 and 0.0 are one number.
    assert found[0, 0] == np.sort(x[0])[-k]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 1.0))
def test_the_nucleus_is_the_smallest_set_that_reaches_top_p(seed, top_p):
    p = softmax(np.random.default_rng(seed).standard_normal(50).astype(np.float32) * 4).astype(np.float32)
    edge = np.asarray(jax.jit(nucleus_edge)(jnp.asarray(p[None]), jnp.asarray([[top_p]], jnp.float32)))[0, 0]
    kept = p[p >= edge]
    assert kept.sum(dtype=np.float64) >= top_p - 1e-5
    assert kept.sum(dtype=np.float64) - kept.min() < top_p + 1e-5


@pytest.mark.parametrize("held_at_once", [2**15, 2**10])
def test_the_kernels_find_the_same_edges(held_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In Pallas' interpreter; rows of one piece and of several."""
    monkeypatch.setattr(truncation_kernel, "_HELD_AT_ONCE", held_at_once)
    rng = np.random.default_rng(held_at_once)
    x = rng.standard_normal((3, 5003)).astype(np.float32)
    x[1, :100] = -np.inf
    k = jnp.asarray([[1], [40], [5003]])
    np.testing.assert_array_equal(truncation_kernel.kth_largest(jnp.asarray(x), k), kth_largest(jnp.asarray(x), k))
    p = jnp.asarray(np.stack([softmax(4 * row) for row in x]).astype(np.float32))
    for top_p in (0.1, 0.9, 1.0):
        wanted = jnp.full((3, 1), top_p, jnp.float32)
        found, expected = truncation_kernel.nucleus_edge(p, wanted), nucleus_edge(p, wanted)
        # Sums have another order of terms: the last token may be in or out.
        mass = [np.where(p >= edge, p, 0).sum(axis=1) for edge in (found, expected)]
        np.testing.assert_allclose(*mass, atol=2e-6)


def test_the_kernels_are_for_gpus() -> None:
    assert not truncation_kernel.kernel_works(Placement((jax.devices("cpu")[0],)), 100)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 0.99), st.integers(1, 50))
def test_typical_tokens_are_the_fewest_nearest_to_the_entropy(seed: int, typical_p: float, left: int) -> None:
    logits = np.random.default_rng(seed).standard_normal(50).astype(np.float32) * 4
    kept = np.arange(50) < left
    found = np.asarray(
        jax.jit(typical_tokens)(jnp.asarray(logits[None]), jnp.asarray(kept[None]), jnp.float32([[typical_p]]))
    )[0]
    p = softmax(np.where(kept, logits.astype(np.float64), -np.inf))
    surprise = -np.log(np.where(kept, p, 1))
    distance = np.where(kept, np.abs(surprise - (p * surprise).sum()), np.inf)
    assert not found[~kept].any()
    assert p[found].sum() >= typical_p - 1e-5
    farthest = np.flatnonzero(found)[distance[found].argmax()]
    assert p[found].sum() - p[farthest] < typical_p + 1e-5
    assert distance[found].max() <= distance[~found].min(initial=np.inf) + 1e-5


def test_xtc_keeps_all_of_the_least_likely_top_tokens() -> None:
    p = jnp.asarray([[0.4, 0.2, 0.2, 0.15, 0.05], [0.4, 0.2, 0.2, 0.15, 0.05], [0.6, 0.1, 0.1, 0.1, 0.1]])
    kept = jnp.asarray([[True] * 5, [True, True, False, False, True], [True] * 5])
    after = tokens_after_xtc(p, kept, jnp.asarray([[0.18], [0.1], [0.5]]))
    assert after.tolist() == [
        [False, True, True, True, True],
        [False, True, False, False, True],
        [True] * 5,
    ]
