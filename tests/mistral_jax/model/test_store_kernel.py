"""The kernel that rotates and stores, in Pallas' interpreter, against rotation and scatter apart."""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import KVCache, write
from mistral_jax.model.rope import Heads, Positions
from mistral_jax.model.store_kernel import rotate_and_store
from mistral_jax.model.table_kinds import BLOCK

pytestmark = pytest.mark.slow

CONFIG = MistralConfig(
    vocab_size=32, hidden_size=64, intermediate_size=64, num_layers=1, num_heads=6, num_kv_heads=2, head_dim=20
)


@settings(max_examples=15, deadline=None)
@given(
    T=st.sampled_from([1, 2, 7, 16, 33]),
    head_dim=st.sampled_from([20, 32, 64, 96]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
    ring=st.booleans(),
    hot=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_rotation_and_scatter(T: int, head_dim: int, dtype: str, ring: bool, hot: bool, seed: int) -> None:
    """Bits are equal but for the last one of what a CPU's compiler fuses."""
    config = replace(
        CONFIG,
        head_dim=head_dim,
        layer_windows=(200 if ring else None,),
        attention_temperature_beta=0.1 if hot else 0.0,
        attention_temperature_length=64,
    )
    rng = np.random.default_rng(seed)
    B, N, K = 3, config.num_heads, config.num_kv_heads
    cache = KVCache.allocate(config, slots=B + 1, length=5 * BLOCK, chunk=T, dtype=dtype)
    first = rng.integers(0, 4 * BLOCK, B)
    positions = jnp.asarray(first[:, None] + np.arange(T), jnp.int32)
    valid = jnp.asarray(np.arange(T) < rng.integers(0, T + 1, B)[:, None])
    view = cache.view(jnp.asarray(rng.permutation(B + 1)[:B]), positions=positions, valid=valid)
    where = {"table": view.table(0), "positions": positions, "valid": valid}
    qkv = jnp.asarray(rng.standard_normal((B, T, N + 2 * K, head_dim)), jnp.float32)
    at = Positions.of(config, positions)
    queries, keys, values = Heads(qkv, (N, K), jnp.dtype(dtype)).rotated(at)
    expected = write(cache.layers[0], keys, values, **where)
    found, layer = rotate_and_store(qkv, cache.layers[0], at, dtype=jnp.dtype(dtype), **where)
    assert found.dtype == queries.dtype
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    for ours, theirs in ((found, queries), (layer.keys, expected.keys), (layer.values, expected.values)):
        wanted = np.asarray(theirs, np.float32)
        np.testing.assert_allclose(np.asarray(ours, np.float32), wanted, atol=tolerance * np.abs(wanted).max())
    # What is not valid is not stored.
    stored = jnp.any(layer.keys != 0, axis=-1).sum()
    assert int(stored) == int(valid.sum()) * K


def test_the_pool_is_updated_in_place() -> None:
    cache = KVCache.allocate(CONFIG, slots=2, length=BLOCK, chunk=1, dtype="float32")
    positions = jnp.zeros((2, 1), jnp.int32)
    at = Positions.of(CONFIG, positions)

    def step(cache: KVCache) -> KVCache:
        view = cache.view(jnp.arange(2), positions=positions, valid=positions == 0)
        where = {"table": view.table(0), "positions": positions, "valid": view.valid}
        qkv = jnp.ones((2, 1, 10, 20), jnp.float32)
        _, layer = rotate_and_store(qkv, cache.layers[0], at, dtype=qkv.dtype, **where)
        return replace(cache, layers=(layer,))

    text = jax.jit(step, donate_argnums=0).trace(cache).lower(lowering_platforms=("cpu",)).as_text()
    assert text.count("tf.aliasing_output") >= 2
