"""Batches: every example once an epoch, little padding, the same order for the same seed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.training.batches import Batches, choose_lengths, limit_lengths, split_off
from mistral_jax.training.chat_data import DataError, Example


def examples(lengths: list[int]) -> list[Example]:
    """Example i is full of tokens i + 1; its second half counts."""
    return [Example(np.full((n,), i + 1, np.int32), np.arange(n) >= max(1, n // 2)) for i, n in enumerate(lengths)]


@given(st.lists(st.integers(2, 90), min_size=1, max_size=40), st.integers(20, 200), st.integers(1, 4))
@settings(max_examples=40, deadline=None)
def test_every_example_is_whole_in_one_batch_of_each_epoch(lengths: list[int], size: int, buckets: int) -> None:
    batches = Batches(examples(lengths), size, buckets, 5)
    assert len(batches.lengths) <= buckets
    for epoch in range(2):
        seen: list[int] = []
        counted = real = 0
        for i in range(batches.per_epoch):
            batch = batches[epoch * batches.per_epoch + i]
            assert batch.weights.shape == (batch.tokens.shape[0], batch.tokens.shape[1] - 1)
            assert batch.weights.size <= max(size, batch.weights.shape[1])
            for tokens, weights in zip(batch.tokens, batch.weights, strict=True):
                number = int(tokens[0])
                if number == 0:
                    assert not weights.any()
                    continue
                n = lengths[number - 1]
                assert (tokens[:n] == number).all()
                assert (tokens[n:] == 0).all()
                assert weights.nonzero()[0].tolist() == list(range(max(1, n // 2) - 1, n - 1))
                seen.append(number)
            counted += batch.counted
            real += batch.real
        assert sorted(seen) == list(range(1, len(lengths) + 1))
        assert real == batches.tokens == sum(lengths)
        assert counted == sum(int(e.counted.sum()) for e in batches.examples)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_the_lengths_have_the_least_padding(lengths: list[int], most: int) -> None:
    def padded(chosen: tuple[int, ...]) -> float:
        return sum(min((c for c in chosen if c >= n), default=np.inf) for n in lengths)

    candidates = sorted({-(-n // 8) * 8 for n in lengths})
    best = min(padded(c) for k in range(1, most + 1) for c in itertools.combinations(candidates, k))
    found = choose_lengths(lengths, most)
    assert len(found) <= most
    assert padded(found) == best


def test_order_follows_from_seed_and_epoch() -> None:
    def order(seed: int, epoch: int) -> list[int]:
        batches = Batches(examples([8] * 30), 16, 2, seed)
        return [int(batches[epoch * batches.per_epoch + i].tokens[0, 0]) for i in range(batches.per_epoch)]

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(2, 0)
    assert order(1, 0) != order(1, 1)
    unshuffled = Batches(examples([8] * 4), 8, 1, 1, shuffled=False)
    assert [int(unshuffled[i].tokens[0, 0]) for i in range(4)] == [1, 2, 3, 4]


def test_the_fingerprint_tells_data_apart() -> None:
    base = Batches(examples([8, 9]), 16, 2, 1)
    assert base.fingerprint == Batches(examples([8, 9]), 16, 2, 1).fingerprint
    others = [
        Batches(examples([9, 8]), 16, 2, 1),
        Batches(examples([8, 9]), 32, 2, 1),
        Batches(examples([8, 9]), 16, 2, 2),
    ]
    assert len({base.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_what_is_too_long_is_refused_left_out_or_cut() -> None:
    made = examples([4, 9, 20])
    with pytest.raises(DataError, match="example 3 of 3 has 20 tokens, and max_length is 10"):
        limit_lengths(made, 10, "refuse")
    kept, changed = limit_lengths(made, 10, "skip")
    assert ([len(e) for e in kept], changed) == ([4, 9], 1)
    # Of the third nothing that counts is left.
    kept, changed = limit_lengths(made, 8, "cut")
    assert ([len(e) for e in kept], changed) == ([4, 8], 2)
    with pytest.raises(DataError, match="no example is left of 3"):
        limit_lengths(made, 3, "skip")


def test_held_out_examples_are_not_trained_on() -> None:
    made = examples([5] * 20)
    train, held_out = split_off(made, 0.25, 3)
    assert len(held_out) == 5
    assert {int(e.tokens[0]) for e in train} | {int(e.tokens[0]) for e in held_out} == set(range(1, 21))
    assert [int(e.tokens[0]) for e in split_off(made, 0.25, 3)[1]] == [int(e.tokens[0]) for e in held_out]
    assert split_off(made, 0.0, 3) == (made, [])
    with pytest.raises(DataError, match="leaves none"):
        split_off(made, 0.01, 3)
