"""The ring: what is written where, what a query may see, and that no way of cutting a text into chunks shows in the
result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import (
    KVCache,
    LayerCache,
    cache_bytes,
    key_positions,
    read_block,
    read_blocks,
    write,
)
from mistral_jax.model.mistral import Mistral
from mistral_jax.model.table_kinds import BLOCK, SPARE, TableKind, layer_lengths, table_kinds

pytestmark = pytest.mark.slow

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 60,
    "intermediate_size": 44,
    "head_dim": 20,
    "num_heads": 6,
    "num_kv_heads": 2,
}
# The ring of the first layer has two blocks of 128: a text of 400 tokens goes round it. That of the second never
# wraps.
CONFIG = MistralConfig(**SHAPE, num_layers=2, layer_windows=(50, None))  # pyright: ignore[reportArgumentType]
LENGTH, CHUNK = 400, 40


TABLES = jnp.array([[7, 2, 4], [9, 8, 5], [6, 1, 3]], jnp.int32)
"""Blocks of three slots, out of order."""


def ring() -> LayerCache:
    """Blocks of two tokens, three of them for each slot."""
    return LayerCache(jnp.zeros((10, 1, 2, 1)), jnp.zeros((10, 1, 1, 2)))


def store(layer: LayerCache, positions: list[int], *, slot: int = 0, valid: list[bool] | None = None) -> LayerCache:
    """Write keys that say their position (plus a half, so that zero stays empty), and values that say it negated."""
    numbers = jnp.array(positions, jnp.float32)[None, :, None, None] + 0.5
    mask = jnp.array([[True] * len(positions) if valid is None else valid])
    at = jnp.array([positions], jnp.int32)
    return write(layer, numbers, -numbers, table=TABLES[slot : slot + 1], positions=at, valid=mask)


def held(layer: LayerCache, slot: int = 0) -> list[float]:
    return [float(key) - 0.5 for key in layer.keys[TABLES[slot], 0, :, 0].ravel()]


def test_worked_example_of_the_docstring() -> None:
    layer = ring()
    for position in range(9):
        layer = store(layer, [position])
    assert held(layer) == [6, 7, 8, 3, 4, 5]
    positions = key_positions(jnp.arange(6), jnp.array([8]), 6)[0].tolist()
    assert positions == [6, 7, 8, 3, 4, 5]
    assert [position for position in sorted(positions) if 0 <= 8 - position < 4] == [5, 6, 7, 8]


def test_values_go_where_their_keys_go() -> None:
    layer = store(ring(), [4, 5, 6, 7])
    np.testing.assert_array_equal(layer.values[:, 0, 0], -layer.keys[:, 0, :, 0])


def test_padding_and_idle_rows_leave_no_trace() -> None:
    before = store(ring(), [0, 1, 2])
    after = store(before, [3, 4, 5], valid=[True, False, False])
    assert held(after) == [0, 1, 2, 3, -0.5, -0.5]
    np.testing.assert_array_equal(store(after, [9, 10], valid=[False, False]).keys, after.keys)


def test_a_row_writes_to_its_own_slot_only() -> None:
    layer = store(ring(), [0, 1], slot=1)
    assert held(layer, 0) == held(layer, 2) == [-0.5] * 6
    for rows in (TABLES[1:3], TABLES[1:2]):
        keys, values = read_block(layer, rows, 0)
        assert (keys.shape, values.shape) == ((len(rows), 1, 2, 1), (len(rows), 1, 1, 2))
        assert (float(keys[0, 0, 1, 0]), float(values[0, 0, 0, 1])) == (1.5, -1.5)
    keys, values = read_blocks(layer, TABLES[1:3], 2)
    assert (keys.shape, values.shape) == ((2, 2, 1, 2, 1), (2, 2, 1, 1, 2))
    assert (float(keys[0, 0, 0, 1, 0]), float(values[0, 0, 0, 0, 1])) == (1.5, -1.5)


@given(S=st.integers(1, 40), last=st.integers(-1, 200))
@settings(max_examples=60, deadline=None)
def test_key_positions_tell_what_an_index_holds(S: int, last: int) -> None:
    expected: dict[int, int] = {}
    for position in range(last + 1):
        expected[position % S] = position
    actual = np.asarray(key_positions(np.arange(S), np.array([last]), S))[0]
    for index in range(S):
        if index in expected:
            assert actual[index] == expected[index]
        else:
            assert actual[index] < 0


def test_windowed_layers_keep_a_window_a_chunk_and_a_block_in_whole_blocks() -> None:
    """Heads of 20 lie among zeros, up to what products take."""
    assert layer_lengths(CONFIG, length=1000, chunk=CHUNK) == [2 * BLOCK, 8 * BLOCK]
    assert layer_lengths(CONFIG, length=1000, chunk=79) == [3 * BLOCK, 8 * BLOCK]
    assert layer_lengths(CONFIG, length=60, chunk=CHUNK) == [BLOCK, BLOCK]
    kinds = (TableKind(blocks=2, window=50), TableKind(blocks=8, window=None))
    assert table_kinds(CONFIG, length=1000, chunk=CHUNK) == (kinds, (0, 1))
    assert table_kinds(CONFIG, length=60, chunk=CHUNK) == ((TableKind(blocks=1, window=None),), (0, 0))
    cache = KVCache.allocate(CONFIG, slots=3, length=1000, chunk=CHUNK, dtype=jnp.bfloat16)
    # The spare block, too.
    assert [layer.keys.shape for layer in cache.layers] == [(1 + 3 * 2, 2, 128, 32), (1 + 3 * 8, 2, 128, 32)]
    assert [layer.values.shape for layer in cache.layers] == [(1 + 3 * 2, 2, 32, 128), (1 + 3 * 8, 2, 32, 128)]
    assert cache.nbytes == 2 * (7 + 25) * 128 * 2 * 2 * 32
    assert cache_bytes(CONFIG, slots=3, length=1000, chunk=CHUNK, dtype=jnp.bfloat16) == cache.nbytes
    assert cache.slots == 3
    assert all(np.all(table != SPARE) for table in cache.tables)


def test_a_pool_of_any_size_belongs_to_nobody_at_first() -> None:
    sizes: Any = {"slots": 3, "length": 1000, "chunk": CHUNK, "dtype": jnp.float32, "counts": (5, 11)}
    cache = KVCache.allocate(CONFIG, **sizes)
    assert [layer.blocks for layer in cache.layers] == [5, 11]
    assert [table.shape for table in cache.tables] == [(3, 2), (3, 8)]
    assert not any(np.any(table) for table in cache.tables)
    assert cache_bytes(CONFIG, **sizes) == cache.nbytes


def test_nothing_is_stored_where_a_row_has_no_block() -> None:
    table = jnp.array([[7, SPARE, 4]], jnp.int32)
    one = jnp.ones((1, 6, 1, 1))
    layer = write(
        ring(), one, one, table=table, positions=jnp.arange(6, dtype=jnp.int32)[None], valid=jnp.ones((1, 6), bool)
    )
    for pool in (layer.keys, layer.values):
        assert np.flatnonzero(np.asarray(pool).any(axis=(1, 2, 3))).tolist() == [4, 7]


def test_the_bytes_of_a_token_are_those_that_are_allocated_for_it() -> None:
    config = replace(CONFIG, layer_windows=(None,) * CONFIG.num_layers)
    assert config.head_dim % 16
    allocated = KVCache.allocate(config, slots=3, length=256, chunk=CHUNK, dtype=jnp.bfloat16).nbytes
    assert (3 * 256 + BLOCK) * config.kv_bytes_per_token(2) == allocated


Step = Callable[..., tuple[jax.Array, KVCache]]


@pytest.fixture(scope="module")
def model() -> Mistral:
    return Mistral(CONFIG, rngs=nnx.Rngs(3))


@pytest.fixture(scope="module")
def step(model: Mistral) -> Step:
    """Prefill of at most CHUNK tokens, padded to that: one program for every chunk size."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(
        state: nnx.State, cache: KVCache, tokens: jax.Array, slot: jax.Array, start: jax.Array, count: jax.Array
    ) -> tuple[jax.Array, KVCache]:
        columns = jnp.arange(tokens.shape[1])[None]
        return nnx.merge(graphdef, state)(
            tokens, cache, cache.view(slot[None], positions=start + columns, valid=columns < count)
        )

    def step(cache: KVCache, tokens: np.ndarray, slot: int, start: int) -> tuple[jax.Array, KVCache]:
        padded = np.full((1, CHUNK), 96, np.int32)
        padded[0, : len(tokens)] = tokens
        hidden, cache = run(state, cache, padded, jnp.int32(slot), jnp.int32(start), jnp.int32(len(tokens)))
        return hidden[0, : len(tokens)], cache

    return step


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return np.random.default_rng(5).integers(0, 97, LENGTH).astype(np.int32)


@pytest.fixture(scope="module")
def uncached(model: Mistral, text: np.ndarray) -> np.ndarray:
    graphdef, state = nnx.split(model)
    run = jax.jit(lambda state, tokens: nnx.merge(graphdef, state).hidden_states(tokens))
    return np.asarray(run(state, text[None]))[0]


def cached(
    step: Step, text: np.ndarray, sizes: list[int], *, slot: int = 0, cache: KVCache | None = None
) -> np.ndarray:
    if cache is None:
        cache = KVCache.allocate(CONFIG, slots=2, length=LENGTH, chunk=CHUNK, dtype=jnp.float32)
    parts: list[jax.Array] = []
    start = 0
    while start < len(text):
        size = sizes[len(parts) % len(sizes)]
        hidden, cache = step(cache, text[start : start + size], slot, start)
        parts.append(hidden)
        start += size
    return np.concatenate(parts)


@given(sizes=st.lists(st.integers(1, CHUNK), min_size=1, max_size=30))
@settings(max_examples=12, deadline=None)
def test_any_split_of_a_text_gives_what_the_uncached_pass_gives(
    step: Step, text: np.ndarray, uncached: np.ndarray, sizes: list[int]
) -> None:
    """The window is 50 of 400 tokens, the ring goes round, and chunks of odd sizes straddle its seam."""
    if sum(sizes) / len(sizes) < 8:
        sizes = [*sizes, CHUNK]  # else hundreds of steps
    np.testing.assert_allclose(cached(step, text, sizes), uncached, atol=2e-5)


def test_a_reused_slot_shows_nothing_of_its_former_tenant(step: Step, text: np.ndarray, uncached: np.ndarray) -> None:
    """Not even if that one's numbers had overflowed."""
    cache = KVCache.allocate(CONFIG, slots=2, length=LENGTH, chunk=CHUNK, dtype=jnp.float32)
    own = [cache.tables[kind][1] for kind in cache.kinds]
    layers = [
        jax.tree.map(lambda x, b=b: x.at[b].set(jnp.nan), layer) for layer, b in zip(cache.layers, own, strict=True)
    ]
    poisoned = replace(cache, layers=tuple(layers))
    expected = cached(step, text[:150], [CHUNK], slot=1, cache=cache)
    np.testing.assert_array_equal(cached(step, text[:150], [CHUNK], slot=1, cache=poisoned), expected)
    np.testing.assert_allclose(expected, uncached[:150], atol=2e-5)


def test_a_ring_may_go_on_in_blocks_that_others_left(step: Step, text: np.ndarray) -> None:
    """As when its own are kept for others: what is older than the window is then not this row's, even if attention
    reads it."""
    cache = KVCache.allocate(CONFIG, slots=2, length=LENGTH, chunk=CHUNK, dtype=jnp.float32)
    expected = cached(step, text[:320], [CHUNK], cache=cache)
    parts: list[jax.Array] = []
    for start in range(0, 320, CHUNK):
        if start == 240:
            # The chunk goes into the third block of 128, for which the ring takes another than its first.
            layer, table = cache.layers[0], cache.tables[0]
            other = table[1, 0]
            left = LayerCache(layer.keys.at[other].set(jnp.nan), layer.values.at[other].set(jnp.nan))
            tables = [table.at[0, 0].set(other), cache.tables[1]]
            cache = replace(cache, layers=(left, *cache.layers[1:])).with_tables(tables)
        hidden, cache = step(cache, text[start : start + CHUNK], 0, start)
        parts.append(hidden)
    np.testing.assert_array_equal(np.concatenate(parts), expected)


def test_a_donated_cache_is_updated_in_place(model: Mistral) -> None:
    graphdef, state = nnx.split(model)

    def run(state: nnx.State, cache: KVCache, tokens: jax.Array) -> tuple[jax.Array, KVCache]:
        view = cache.view(jnp.arange(2), positions=jnp.zeros((2, 1), jnp.int32), valid=jnp.ones((2, 1), bool))
        return nnx.merge(graphdef, state)(tokens, cache, view)

    cache = KVCache.allocate(CONFIG, slots=2, length=LENGTH, chunk=CHUNK, dtype=jnp.float32)
    addresses = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(cache)]
    _, updated = jax.jit(run, donate_argnums=1)(state, cache, jnp.zeros((2, 1), jnp.int32))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
    assert [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(updated)] == addresses


def test_rows_may_share_blocks_that_they_do_not_write() -> None:
    """Two texts with 128 tokens in common: the second reads the block of the first."""
    config = MistralConfig(**SHAPE, num_layers=2)  # pyright: ignore[reportArgumentType]
    model = Mistral(config, rngs=nnx.Rngs(3))
    graphdef, state = nnx.split(model)
    rng = np.random.default_rng(8)
    texts = rng.integers(0, 97, (2, BLOCK + 40)).astype(np.int32)
    texts[1, :BLOCK] = texts[0, :BLOCK]
    cache = KVCache.allocate(config, slots=2, length=BLOCK + 40, chunk=BLOCK, dtype=jnp.float32)

    @jax.jit
    def run(state: nnx.State, cache: KVCache, tokens: jax.Array, slot: jax.Array, start: jax.Array) -> Any:
        positions = start + jnp.arange(tokens.shape[1])[None]
        view = cache.view(slot[None], positions=positions, valid=jnp.ones_like(positions, bool))
        return nnx.merge(graphdef, state)(tokens, cache, view)

    first, second = jnp.int32(0), jnp.int32(1)
    _, cache = run(state, cache, texts[:1, :BLOCK], first, jnp.int32(0))
    before = jax.tree.map(np.asarray, cache)
    cache = cache.with_tables([cache.tables[0].at[1, 0].set(cache.tables[0][0, 0])])
    hidden, cache = run(state, cache, texts[1:, BLOCK:], second, jnp.int32(BLOCK))
    expected = jax.jit(lambda state, tokens: nnx.merge(graphdef, state).hidden_states(tokens))(state, texts[1:])
    np.testing.assert_allclose(hidden[0], expected[0, BLOCK:], atol=2e-5)
    for layer, old in zip(cache.layers, before.layers, strict=True):
        np.testing.assert_array_equal(layer.keys[cache.tables[0][0]], old.keys[before.tables[0][0]])
