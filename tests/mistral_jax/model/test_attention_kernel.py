"""The kernel of attention, in Pallas' interpreter, against the loop over blocks: any shapes and lengths.

Compiling it for a GPU is tested in tests/benchmarks/test_gpu_programs.py, where the compiler is installed.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.model import attention_kernel
from mistral_jax.model.attention import attend, kernel_works
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import KERNEL, LOOP, LayerCache
from mistral_jax.model.table_kinds import BLOCK
from mistral_jax.quant.placement import Placement

pytestmark = pytest.mark.slow


class Shape(NamedTuple):
    T: int
    K: int
    G: int
    H: int
    stored: int
    """H in the pool."""
    C: int
    window: int | None
    dtype: str


shapes = st.builds(
    lambda T, K, G, heads, C, window, dtype: Shape(T, K, G, *heads, C, window, dtype),
    T=st.sampled_from([1, 2, 3, 7, 8, 9, 16, 33, 64, 100]),
    K=st.integers(1, 3),
    G=st.sampled_from([1, 2, 3, 4, 6, 12]),
    heads=st.sampled_from([(20, 32), (32, 32), (64, 64), (80, 96), (96, 96), (128, 128)]),
    C=st.integers(1, 5),
    window=st.sampled_from([None, 1, 60, 128, 300]),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)


def pools(rng: np.random.Generator, shape: Shape, blocks: int) -> LayerCache:
    keys = rng.standard_normal((blocks, shape.K, BLOCK, shape.stored)).astype(np.float32)
    values = rng.standard_normal((blocks, shape.K, shape.stored, BLOCK)).astype(np.float32)
    keys[..., shape.H :], values[:, :, shape.H :] = 0, 0
    return LayerCache(jnp.asarray(keys, shape.dtype), jnp.asarray(values, shape.dtype))


@settings(max_examples=15, deadline=None)
@given(shape=shapes, data=st.data())
def test_equals_the_loop(shape: Shape, data: st.DataObject) -> None:
    S = shape.C * BLOCK
    # A ring holds the window and the queries; rows of other tables do not run round.
    ring = shape.window is not None and shape.window + shape.T <= S
    furthest = 3 * S if ring else S - 1
    # A row holds its queries, or is idle.
    lengths = st.one_of(st.just(-1), st.integers(min(shape.T - 1, furthest), furthest))
    last = np.array(data.draw(st.lists(lengths, min_size=1, max_size=3), label="last"), np.int32)
    if shape.T > S:
        last[:] = -1
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    B = len(last)
    blocks = B * shape.C + 1
    layer = pools(rng, shape, blocks)
    table = rng.permutation(blocks)[: B * shape.C].reshape(B, shape.C).astype(np.int32)
    queries = rng.standard_normal((B, shape.T, shape.K * shape.G, shape.H)) * shape.H**-0.5
    arguments = {
        "table": jnp.asarray(table),
        "positions": jnp.asarray(np.maximum(last[:, None] - shape.T + 1, 0) + np.arange(shape.T, dtype=np.int32)),
        "last": jnp.asarray(last),
        "window": shape.window,
    }
    # What a block's previous owner left must not be seen.
    clean = layer
    for row, at in enumerate(last):
        if 0 <= at < S - 1 and (at + 1) % BLOCK:
            block = int(table[row, (at + 1) // BLOCK])
            layer = LayerCache(
                layer.keys.at[block, :, (at + 1) % BLOCK :].set(jnp.nan),
                layer.values.at[block, :, :, (at + 1) % BLOCK :].set(jnp.nan),
            )
    x = jnp.asarray(queries, shape.dtype)
    expected = np.asarray(attend(x, clean, **arguments, plan=LOOP))
    actual = np.asarray(attend(x, layer, **arguments, plan=KERNEL), np.float32)
    # A result is a mean of values. The two forms merge keys in other orders.
    largest = float(jnp.max(jnp.abs(clean.values.astype(jnp.float32))))
    tolerance = 1e-6 if shape.dtype == "float32" else 5e-3
    np.testing.assert_allclose(actual, expected, atol=tolerance * largest)
    for row in np.flatnonzero(last < 0):
        assert not actual[row].any()


@pytest.mark.parametrize(("T", "G"), [(8, 12), (8, 16), (3, 32), (2, 64), (5, 9)])
def test_runs_of_tokens_in_large_groups(T: int, G: int) -> None:
    """More queries than a tile has rows."""
    shape = Shape(T, 2, G, 32, 32, 3, None, "float32")
    rng = np.random.default_rng(0)
    layer = pools(rng, shape, 2 * shape.C)
    last = jnp.asarray([300, 129], jnp.int32)
    queries = jnp.asarray(rng.standard_normal((2, T, 2 * G, 32)) / 6, jnp.float32)
    arguments = {
        "table": jnp.asarray(rng.permutation(2 * shape.C).reshape(2, shape.C).astype(np.int32)),
        "positions": last[:, None] - T + 1 + jnp.arange(T),
        "last": last,
        "window": None,
    }
    found, expected = (attend(queries, layer, **arguments, plan=plan) for plan in (KERNEL, LOOP))
    np.testing.assert_allclose(found, expected, atol=2e-6)


class LikeAGPU(Placement):
    """A CPU that is taken for a GPU: kernels run in the interpreter."""

    @property
    def platform(self) -> str:
        return "gpu"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_gpu_is_asked_at_start(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MistralConfig(
        vocab_size=32,
        hidden_size=64,
        intermediate_size=32,
        num_layers=1,
        num_heads=6,
        num_kv_heads=2,
        head_dim=20,
        attention_temperature_beta=0.1,
        attention_temperature_length=64,
    )
    placement = LikeAGPU((jax.devices("cpu")[0],))
    assert kernel_works.__wrapped__(placement, config, dtype)
    monkeypatch.setattr(attention_kernel, "attend", lambda queries, *_, **__: 1.1 * queries)
    jax.clear_caches()  # of what was traced before
    assert not kernel_works.__wrapped__(placement, config, dtype)
    jax.clear_caches()


def test_a_longer_table_gives_the_same_bits() -> None:
    """Up to the length from which pieces are longer, see `_PIECE_BLOCKS`."""
    shape = Shape(1, 2, 4, 64, 64, 40, None, "float32")
    rng = np.random.default_rng(0)
    layer = pools(rng, shape, 2 * shape.C)
    table = jnp.asarray(rng.permutation(2 * shape.C).reshape(2, shape.C).astype(np.int32))
    last = jnp.asarray([700, 300], jnp.int32)
    queries = jnp.asarray(rng.standard_normal((2, 1, 8, 64)) / 8, jnp.float32)
    common = {"positions": last[:, None], "last": last, "window": None, "plan": KERNEL}
    outputs = [np.asarray(attend(queries, layer, table=table[:, :C], **common)) for C in (6, 17, 40)]
    for other in outputs[1:]:
        np.testing.assert_array_equal(other, outputs[0])


@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize(("T", "G"), [(8, 4), (5, 8), (2, 3)])
def test_a_query_has_the_same_result_alone_and_in_a_run(T: int, G: int, window: int | None) -> None:
    """To the last bit on a GPU; a CPU multiplies tiles of 16 and 32 rows differently."""
    rng = np.random.default_rng(T)
    shape = Shape(T=T, K=2, G=G, H=64, stored=64, C=80, window=window, dtype="bfloat16")
    layer = pools(rng, shape, shape.C + 1)
    table = jnp.asarray(rng.permutation(shape.C + 1)[None, : shape.C], jnp.int32)
    queries = jnp.asarray(rng.standard_normal((1, T, 2 * G, 64)) / 8, jnp.bfloat16)
    for first in (0, 3, BLOCK - 2, 70 * BLOCK - 3):
        positions = first + jnp.arange(T, dtype=jnp.int32)[None]
        run = attend(
            queries, layer, table=table, positions=positions, last=positions[:, -1], window=window, plan=KERNEL
        )
        for t in range(T):
            at = positions[:, t : t + 1]
            alone = attend(
                queries[:, t : t + 1], layer, table=table, positions=at, last=at[:, 0], window=window, plan=KERNEL
            )
            tolerance = 0.0 if jax.default_backend() == "gpu" else 2.0**-7
            np.testing.assert_allclose(
                np.asarray(alone[:, 0], np.float32),
                np.asarray(run[:, t], np.float32),
                rtol=tolerance,
                atol=tolerance / 8,
            )


def test_more_pieces_than_are_merged_at_once() -> None:
    shape = Shape(1, 1, 2, 32, 32, 150, None, "float32")
    rng = np.random.default_rng(0)
    layer = pools(rng, shape, shape.C)
    last = jnp.asarray([149 * BLOCK + 5], jnp.int32)
    queries = jnp.asarray(rng.standard_normal((1, 1, 2, 32)), jnp.float32)
    table = jnp.asarray(rng.permutation(shape.C)[None].astype(np.int32))
    arguments = {"table": table, "positions": last[:, None], "last": last, "window": None}
    np.testing.assert_allclose(
        attend(queries, layer, **arguments, plan=KERNEL), attend(queries, layer, **arguments, plan=LOOP), atol=2e-6
    )


def test_a_cpu_does_without() -> None:
    config = MistralConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=8
    )
    assert not kernel_works(Placement((jax.devices("cpu")[0],)), config, jnp.float32)
