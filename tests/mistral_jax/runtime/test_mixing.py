"""Which adapters a row uses, and what the passes of a mixed batch leave of the others."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.model.kv_cache import LOOP, KVCache
from mistral_jax.runtime.mixing import NEVER, AdaptedModel, Caches, MixingRows, RowMixing
from tests.mistral_jax.tiny_adapters import CONFIG, adapter_set, model, xlora

pytestmark = pytest.mark.slow

A = 3


def test_what_a_sequence_begins_with() -> None:
    base = RowMixing.of(BASE, A, 10)
    assert (np.asarray(base.weights).tolist(), bool(base.live), int(base.freeze_at)) == ([0, 0, 0], False, NEVER)
    fixed = RowMixing.of(AdapterChoice(weights=((2, 0.5), (0, -1.0))), A, 10)
    assert np.asarray(fixed.weights).tolist() == [-1.0, 0.0, 0.5]
    # The first token of a completion is run at position 10, one after the prompt's last.
    frozen = RowMixing.of(AdapterChoice(xlora=True, freeze_after=1), A, 10)
    assert (bool(frozen.live), int(frozen.freeze_at)) == (True, 10)


def test_rows_of_slots() -> None:
    rows = MixingRows.allocate(slots=4, columns=2, adapters=A)
    rows = rows.admit(jnp.int32(2), RowMixing.of(AdapterChoice(weights=((1, 2.0),)), A, 5))
    assert np.asarray(rows.slot(jnp.int32(2)).weights).tolist() == [[[0, 2, 0], [0, 2, 0]]]
    assert rows.first(2).live.shape == (2,)
    assert not np.asarray(rows.first(2).weights).any()


def test_a_pass_without_adapters_touches_no_other_cache() -> None:
    module, mixer, adapters = model(), xlora(), adapter_set()
    adapted = AdaptedModel(model=module, bank=adapters.bank, adapters=adapters.capacity, xlora=mixer)
    sizes = {"slots": 2, "length": 64, "chunk": 16, "dtype": jnp.float32}
    caches = Caches(KVCache.allocate(CONFIG, **sizes), KVCache.allocate(CONFIG, **sizes))
    rows = MixingRows.allocate(slots=2, columns=mixer.columns.count, adapters=adapters.capacity)
    rows = rows.admit(jnp.int32(1), RowMixing.of(AdapterChoice(xlora=True), adapters.capacity, 4))
    at = {
        "positions": jnp.broadcast_to(jnp.arange(4), (2, 4)),
        "valid": jnp.ones((2, 4), jnp.bool_),
        "mixing": rows,
        "plan": LOOP,
    }
    tokens = jnp.array([[3, 4, 5, 6]] * 2)
    hidden, after, weights = adapted(tokens, caches, jnp.arange(2), **at, scaling=False)
    assert weights is None
    assert after.scaling is caches.scaling
    both, after, weights = adapted(tokens, caches, jnp.arange(2), **at, scaling=True)
    assert weights is not None
    # The base row has no weights, with or without a scaling pass, and the same bits.
    assert not np.asarray(weights[0]).any()
    np.testing.assert_array_equal(both[0], hidden[0])
    assert np.abs(np.asarray(weights[1])).sum() > 0
    assert np.abs(np.asarray(both[1] - hidden[1])).max() > 1e-3
    assert after.scaling is not None
    assert np.asarray(after.scaling.layers[0].keys).any()
