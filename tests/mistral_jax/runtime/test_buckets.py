"""Which shapes programs have: chunks cover a prompt once, buckets take what is asked of them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mistral_jax.model.kv_cache import KERNEL, LOOP, ReadPlan
from mistral_jax.model.table_kinds import BLOCK
from mistral_jax.runtime.buckets import DEFAULT_CHUNKS, SCORE_CHUNK, Buckets, cache_rows, chunk_sizes


def buckets(**changes: object) -> Buckets:
    chosen = {"slots": 16, "length": 4096, "blocks": 32, "on_cpu": True, **changes}
    return Buckets.choose(**chosen)  # type: ignore[arg-type]


@given(length=st.integers(1, 3000), sizes=st.sets(st.integers(2, 512), min_size=1, max_size=4))
def test_chunks_cover_all_tokens_but_the_last(length: int, sizes: set[int]) -> None:
    shapes = buckets(chunks=tuple(sizes))
    for chunks, last in ((shapes.prompt_chunks(length), shapes.chunks[-1]), (shapes.scored_chunks(length), None)):
        at = 0
        for chunk in chunks:
            assert chunk.start == at
            assert 0 < chunk.count <= chunk.size
            assert chunk.size in shapes.chunks if last else chunk.size == shapes.score
            assert chunk.score is (last is None)
            at += chunk.count
        assert at == length - 1


def test_a_rest_is_padded_to_the_shortest_chunk_that_holds_it() -> None:
    found = [(chunk.start, chunk.count, chunk.size) for chunk in buckets().prompt_chunks(2 * 256 + 20 + 1)]
    assert found == [(0, 256, 256), (256, 256, 256), (512, 20, 64)]
    assert list(buckets().prompt_chunks(1)) == []


@pytest.mark.parametrize(
    ("slots", "expected"), [(1, (2,)), (2, (2,)), (8, (2, 8)), (9, (2, 8, 9)), (64, (2, 8, 32, 64))]
)
def test_rows_on_a_cpu(slots: int, expected: tuple[int, ...]) -> None:
    shapes = buckets(slots=slots)
    assert shapes.rows == expected
    assert cache_rows(slots) == expected[-1]
    assert shapes.blocks == ()
    for slot in range(slots):
        assert shapes.rows_for([0, slot]) == min(rows for rows in expected if rows > slot)


def test_a_gpu_runs_all_slots_and_reads_powers_of_two() -> None:
    shapes = buckets(slots=9, on_cpu=False)
    assert shapes.rows == (9,)
    assert shapes.blocks == (2, 4, 8, 16, 32)
    assert buckets(on_cpu=False, blocks=1).blocks == (1,)
    assert buckets(on_cpu=False, blocks=5).blocks == (2, 4, 5)


def test_the_plan_reads_as_many_blocks_as_are_needed() -> None:
    assert buckets().plan(4000) == LOOP
    shapes = buckets(block_buckets=(1, 2, 4), length=4 * BLOCK)
    assert [shapes.plan(length) for length in (1, BLOCK, BLOCK + 1)] == [ReadPlan(1), ReadPlan(1), ReadPlan(2)]
    assert shapes.plan(4 * BLOCK) == shapes.plan(4 * BLOCK + 1) == ReadPlan(4)
    assert [shapes.plan(length) for length in shapes.lengths] == [ReadPlan(1), ReadPlan(2), ReadPlan(4)]
    assert [buckets().plan(length) for length in buckets().lengths] == [LOOP]
    by_kernel = buckets(on_cpu=False, kernel=True)
    assert [by_kernel.plan(length) for length in (*by_kernel.lengths, 4000)] == [KERNEL, KERNEL]
    assert buckets(kernel=True, block_buckets=(1, 2, 4)).plan(1) == ReadPlan(1)


def test_sizes_of_chunks() -> None:
    assert chunk_sizes(DEFAULT_CHUNKS, 4096) == (16, 64, 256)
    assert chunk_sizes(DEFAULT_CHUNKS, 100) == (16, 64, 112)
    assert chunk_sizes(DEFAULT_CHUNKS, 3) == (16,)
    assert buckets().score == SCORE_CHUNK
    assert buckets(chunks=(256,)).score == 256
    with pytest.raises(ValueError, match="at least two tokens"):
        buckets(chunks=(1, 16))
