"""The forms of attention against float64 NumPy, written from the definition; and bits where more is read than needed.

The forms are not the same bit for bit: the parallel one leaves the order of a block's sums to XLA, which may choose it
by the number of blocks and rows, and the kernel has an order of its own. They agree to float32's precision. In the loop
form the bits are fixed: test_bit_identity. The kernel runs in Pallas' interpreter here.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistral_jax.model.attention import attend
from mistral_jax.model.kv_cache import KERNEL, LOOP, LayerCache, ReadPlan
from mistral_jax.model.table_kinds import BLOCK

pytestmark = pytest.mark.slow

S, H = 3 * BLOCK, 20
attend_jit = jax.jit(attend, static_argnames=("window", "plan"))
C = S // BLOCK


def tables(rows: int) -> np.ndarray:
    """int32 [rows, C]: blocks of a pool, out of order."""
    return np.random.default_rng(1).permutation(rows * C).reshape(rows, C).astype(np.int32)


def layer_of(keys: np.ndarray, values: np.ndarray) -> LayerCache:
    """A pool from arrays in the order in which the tests think, [slots, S, K, H] both, where `tables` say; zeros beside
    H, as the cache has them."""
    slots, _, K, _ = keys.shape
    order = np.argsort(tables(slots).ravel())
    keys, values = (
        np.pad(x, ((0, 0), (0, 0), (0, 0), (0, 32 - H))).reshape(slots * C, BLOCK, K, 32)[order] for x in (keys, values)
    )
    return LayerCache(jnp.asarray(keys.transpose(0, 2, 1, 3)), jnp.asarray(values.transpose(0, 2, 3, 1)))


class Case:
    """Rows whose caches are filled up to `last`, with T queries at their end."""

    def __init__(self, last: list[int], *, T: int, N: int, K: int, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        B = len(last)
        self.queries = rng.standard_normal((B, T, N, H)).astype(np.float32) * 0.5
        self.keys = rng.standard_normal((B + 1, S, K, H)).astype(np.float32)
        self.values = rng.standard_normal((B + 1, S, K, H)).astype(np.float32)
        self.last = np.array(last, np.int32)
        self.positions = (self.last[:, None] - T + 1 + np.arange(T)).astype(np.int32)

    def run(self, *, window: int | None = None, plan: ReadPlan, rows: slice = slice(None)) -> np.ndarray:
        """Row b reads slot b + 1."""
        attend = partial(attend_jit, window=window, plan=plan)
        return np.asarray(
            attend(
                jnp.asarray(self.queries[rows]),
                layer_of(self.keys, self.values),
                table=jnp.asarray(tables(len(self.keys))[1:][rows]),
                positions=jnp.asarray(self.positions[rows]),
                last=jnp.asarray(self.last[rows]),
            )
        )

    def expected(self, window: int | None) -> np.ndarray:
        B, T, N, _ = self.queries.shape
        group = N // self.keys.shape[2]
        out = np.zeros((B, T, N, H))
        for b in range(B):
            holds = {position % S: position for position in range(self.last[b] + 1)}
            for t in range(T):
                query_at = self.positions[b, t]
                seen = [i for i, p in holds.items() if p <= query_at and (window is None or query_at - p < window)]
                for n in range(N):
                    if seen:
                        scores = self.keys[b + 1, seen, n // group].astype(np.float64) @ self.queries[b, t, n]
                        weights = np.exp(scores - scores.max())
                        out[b, t, n] = weights @ self.values[b + 1, seen, n // group] / weights.sum()
        return out


FORMS = [pytest.param(LOOP, id="loop"), pytest.param(ReadPlan(3), id="parallel"), pytest.param(KERNEL, id="kernel")]


@pytest.mark.parametrize("plan", FORMS)
@pytest.mark.parametrize(
    ("T", "N", "K", "window"),
    [(1, 6, 2, None), (5, 6, 2, None), (5, 3, 3, 100), (1, 3, 3, None), (37, 4, 1, 17), (1, 4, 1, 129)],
)
def test_equals_softmax_attention_in_float64(plan: ReadPlan, T: int, N: int, K: int, window: int | None) -> None:
    """Rows end inside the first block, on its border, in the last one, and far round the ring; one is empty."""
    case = Case([40, BLOCK - 1, BLOCK, S - 1, -1], T=T, N=N, K=K)
    if window is not None:
        case.last[3] = 5 * S + 77
        case.positions[3] += 4 * S + 78
    actual = case.run(window=window, plan=plan)
    np.testing.assert_allclose(actual, case.expected(window), atol=3e-6)


@pytest.mark.parametrize("plan", FORMS)
def test_an_empty_row_gives_zeros(plan: ReadPlan) -> None:
    case = Case([-1, 50], T=2, N=6, K=2)
    assert not case.run(plan=plan)[0].any()


@pytest.mark.parametrize("plan", [pytest.param(LOOP, id="loop"), pytest.param(KERNEL, id="kernel")])
def test_the_bits_are_the_same_beside_a_longer_row(plan: ReadPlan) -> None:
    short = Case([40, 100], T=3, N=6, K=2).run(plan=plan)
    beside_long = Case([40, 100], T=3, N=6, K=2)
    beside_long.last[1], beside_long.positions[1] = S - 1, np.arange(S - 3, S)
    np.testing.assert_array_equal(beside_long.run(plan=plan)[0], short[0])


@pytest.mark.parametrize("T", [1, 5, 40])
def test_parallel_gives_the_same_bits_when_it_reads_more_blocks(T: int) -> None:
    case = Case([60, 100], T=T, N=6, K=2)
    one, two, three = (case.run(plan=ReadPlan(n)) for n in (1, 2, 3))
    np.testing.assert_array_equal(two, one)
    np.testing.assert_array_equal(three, one)


def test_parallel_reads_no_more_than_there_is() -> None:
    case = Case([200, 380], T=2, N=6, K=2)
    np.testing.assert_array_equal(case.run(plan=ReadPlan(99)), case.run(plan=ReadPlan(3)))


@pytest.mark.parametrize("T", [1, 5])
def test_loop_and_parallel_agree_to_float32_precision(T: int) -> None:
    case = Case([60, 100, 300, 383], T=T, N=6, K=2)
    loop, parallel = (case.run(plan=plan) for plan in (LOOP, ReadPlan(3)))
    np.testing.assert_allclose(loop, parallel, atol=1e-6)


@pytest.mark.parametrize("plan", [pytest.param(LOOP, id="loop"), pytest.param(KERNEL, id="kernel")])
def test_a_row_has_the_same_bits_alone_and_among_others(plan: ReadPlan) -> None:
    case = Case([60, 383, 10, 200], T=1, N=6, K=2)
    together = case.run(plan=plan)
    for b in range(4):
        alone = case.run(plan=plan, rows=slice(b, b + 1))
        np.testing.assert_array_equal(alone[0], together[b])


def test_bfloat16_caches_are_read_with_float32_sums() -> None:
    case = Case([60, 383], T=2, N=6, K=2)
    case.keys, case.values = (x.astype(jnp.bfloat16).astype(np.float32) for x in (case.keys, case.values))
    layer = jax.tree.map(lambda x: x.astype(jnp.bfloat16), layer_of(case.keys, case.values))
    case.queries = np.asarray(jnp.asarray(case.queries, jnp.bfloat16), np.float32)
    out = attend_jit(
        jnp.asarray(case.queries, jnp.bfloat16),
        layer,
        table=jnp.asarray(tables(len(case.keys))[1:]),
        positions=jnp.asarray(case.positions),
        last=jnp.asarray(case.last),
        window=None,
    )
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, case.expected(None), atol=1e-2)
