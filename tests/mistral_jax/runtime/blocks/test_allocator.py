"""What sequences find in their blocks, whatever others did before: a model of the device beside the allocator."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistral_jax.model.table_kinds import SPARE, TableKind
from mistral_jax.runtime.blocks import allocator as allocator_module
from mistral_jax.runtime.blocks.allocator import BlockAllocator, Reuse, SequenceBlocks

J = 4
CHUNK = 4
FULL = TableKind(blocks=10, window=None)
# A window of 5 tokens, a chunk and a block.
RING = TableKind(blocks=4, window=5)
SHORT_RING = TableKind(blocks=3, window=2)


@contextmanager
def small_blocks() -> Iterator[None]:
    modules = ("mistral_jax.model.table_kinds", allocator_module.__name__, "mistral_jax.runtime.blocks.prefixes")
    with ExitStack() as stack:
        for name in modules:
            stack.enter_context(mock.patch.object(sys.modules[name], "BLOCK", J))
        yield


@dataclass(eq=False)
class Running:
    key: str
    tokens: list[int]
    prompt: int
    blocks: SequenceBlocks
    done: int
    """Tokens whose keys and values are stored."""


@dataclass
class Device:
    """Each place of each block holds the key and the tokens up to its own, which is what attention would see there."""

    kinds: Sequence[TableKind]
    counts: Sequence[int]
    reuse: Reuse | None = field(default_factory=Reuse)

    def __post_init__(self) -> None:
        self.allocator = BlockAllocator(self.kinds, self.counts, reuse=self.reuse)
        self.pools = [[[None] * J for _ in range(count)] for count in self.counts]
        self.running: list[Running] = []

    def open(self, key: str, prompt: Sequence[int]) -> tuple[Running, int] | None:
        blocks, cached, copy = self.allocator.open(key, prompt)
        if copy is not None:
            for pool, source, target in zip(self.pools, copy.sources, copy.targets, strict=True):
                if target != SPARE:
                    pool[target] = list(pool[source])
        if not self.allocator.reserve(blocks, len(prompt)):
            self.allocator.close(blocks)
            return None
        sequence = Running(key, list(prompt), len(prompt), blocks, cached)
        self.running.append(sequence)
        assert cached < len(prompt)
        self.check(sequence)
        while sequence.done < len(prompt) - 1:
            count = min(CHUNK, len(prompt) - 1 - sequence.done)
            assert self.allocator.prepare(blocks, sequence.done + count)
            self.write(sequence, count)
            self.allocator.filled(blocks, sequence.tokens, sequence.done)
        return sequence, cached

    def write(self, sequence: Running, count: int) -> None:
        for position in range(sequence.done, sequence.done + count):
            for pool, kind, table in zip(self.pools, self.kinds, sequence.blocks.tables, strict=True):
                block = table[position // J % kind.blocks]
                assert block != SPARE
                pool[block][position % J] = (sequence.key, *sequence.tokens[: position + 1])
            # The queries of this chunk see their windows while all of its tokens are stored.
        sequence.done += count
        for position in range(sequence.done - count, sequence.done):
            self.check(sequence, query=position)

    def check(self, sequence: Running, query: int | None = None) -> None:
        """What the query at a position sees, itself included, or what the next one will see."""
        last = sequence.done - 1 if query is None else query
        for pool, kind, table in zip(self.pools, self.kinds, sequence.blocks.tables, strict=True):
            at = sequence.done if query is None else query
            first = 0 if kind.window is None else max(at - kind.window + 1, 0)
            for position in range(first, last + 1):
                block = table[position // J % kind.blocks]
                expected = (sequence.key, *sequence.tokens[: position + 1])
                assert pool[block][position % J] == expected, (position, block)

    def decode(self, sequence: Running, token: int) -> bool:
        if len(sequence.tokens) >= FULL.blocks * J or not self.allocator.prepare(sequence.blocks, sequence.done + 1):
            return False
        self.write(sequence, 1)
        sequence.tokens.append(token)
        return True

    def close(self, sequence: Running, *, keep: bool = True) -> None:
        completions = self.reuse is not None and self.reuse.completions
        if keep:
            self.allocator.filled(
                sequence.blocks,
                sequence.tokens,
                sequence.done if completions else min(sequence.done, sequence.prompt - 1),
            )
        self.allocator.close(sequence.blocks)
        self.running.remove(sequence)

    def put_back(self, sequence: Running) -> None:
        """Take all blocks from it and give it others, with the same content."""
        saved = [
            [list(pool[block]) for block in table]
            for pool, table in zip(self.pools, sequence.blocks.tables, strict=True)
        ]
        had = [[block != SPARE for block in table] for table in sequence.blocks.tables]
        self.allocator.close(sequence.blocks)
        assert self.allocator.reserve(sequence.blocks, sequence.done)
        for pool, table, contents, own in zip(self.pools, sequence.blocks.tables, saved, had, strict=True):
            for block, content, was in zip(table, contents, own, strict=True):
                if was and block != SPARE:
                    pool[block] = content
        self.check(sequence)


KINDS = st.sampled_from([(FULL,), (RING, FULL), (RING,), (SHORT_RING, RING, FULL)])
TOKENS = st.lists(st.integers(0, 1), min_size=1, max_size=30)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("open"), st.sampled_from("ab"), TOKENS),
        st.tuples(st.just("again"), st.integers(0, 5), TOKENS),
        st.tuples(st.just("decode"), st.integers(0, 5), st.integers(1, 12)),
        st.tuples(st.just("close"), st.integers(0, 5), st.booleans()),
        st.tuples(st.just("put back"), st.integers(0, 5), st.none()),
    ),
    max_size=30,
)


@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(KINDS, st.integers(1, 30), ACTIONS, st.sampled_from([Reuse(), Reuse(completions=False), Reuse(unit=4), None]))
def test_every_query_sees_its_own_tokens(kinds, more, actions, reuse) -> None:
    with small_blocks():
        device = Device(kinds, [kind.blocks + more for kind in kinds], reuse)
        ended: list[list[int]] = []
        for action, what, how in actions:
            if action == "open":
                device.open(what, how)
            elif action == "again" and ended:
                # A later turn of a conversation.
                device.open("a", (ended[what % len(ended)] + how)[: FULL.blocks * J - 1])
            elif device.running and isinstance(what, int):
                sequence = device.running[what % len(device.running)]
                if action == "decode":
                    for i in range(how):
                        device.decode(sequence, i % 2)
                elif action == "close":
                    ended.append(list(sequence.tokens))
                    device.close(sequence, keep=how)
                elif action == "put back":
                    device.put_back(sequence)
        for sequence in list(device.running):
            device.close(sequence)
        allocator = device.allocator
        # Nothing is lost, and what is kept can be had.
        assert allocator.available() == [count - 1 for count in device.counts]
        assert all(pool.used == 0 for pool in allocator._pools)
        everything = SequenceBlocks(None, [[SPARE] * (count - 1) for count in device.counts])
        for number, count in enumerate(device.counts):
            everything.tables[number] = [allocator._take(number) for _ in range(count - 1)]
            assert len(set(everything.tables[number])) == count - 1
        assert len(allocator._tree) == 0
        assert not allocator._tree._roots


@pytest.fixture
def device() -> Iterator[Device]:
    with small_blocks():
        yield Device((FULL,), (41,))


def cached(device: Device, key: str, prompt: Sequence[int]) -> int:
    opened = device.open(key, prompt)
    assert opened is not None
    return opened[1]


def test_a_prompt_that_comes_again_runs_its_last_token_only(device: Device) -> None:
    prompt = list(range(11))
    assert cached(device, "a", prompt) == 0
    assert cached(device, "a", prompt) == 10
    assert cached(device, "b", prompt) == 0
    assert cached(device, "a", [*prompt[:7], 99, 98]) == 7
    assert cached(device, "a", [*prompt, 12, 13]) == 10


def test_the_next_turn_finds_what_was_generated(device: Device) -> None:
    opened = device.open("a", list(range(6)))
    assert opened is not None
    sequence = opened[0]
    for token in range(6, 15):
        device.decode(sequence, token)
    device.close(sequence)
    # The last token was sampled, but not run.
    assert cached(device, "a", [*range(15), 50, 51]) == 14


def test_running_sequences_share_blocks_and_copy_what_they_write_to(device: Device) -> None:
    for _ in range(3):
        assert device.open("a", list(range(10))) is not None
    first, second, third = (sequence.blocks.tables[0] for sequence in device.running)
    assert first[:2] == second[:2] == third[:2]
    assert len({first[2], second[2], third[2]}) == 3
    assert device.allocator.available() == [40 - 2 - 3]


def test_the_block_of_a_sequence_that_ended_is_filled_further(device: Device) -> None:
    assert device.open("a", list(range(10))) is not None
    before = list(device.running[0].blocks.tables[0])
    device.close(device.running[0])
    assert cached(device, "a", [*range(10), 20, 21]) == 9
    assert device.running[0].blocks.tables[0][:3] == before[:3]


def test_least_recently_used_blocks_are_forgotten_first() -> None:
    with small_blocks():
        device = Device((FULL,), (16,))
        for key in ("a", "b", "c"):
            assert cached(device, key, list(range(12))) == 0
            device.close(device.running[0])
        assert cached(device, "a", list(range(12))) == 11
        device.close(device.running[0])
        # Three blocks more than are free.
        assert cached(device, "d", list(range(36))) == 0
        device.close(device.running[0])
        assert cached(device, "a", list(range(12))) == 11
        device.close(device.running[0])
        assert cached(device, "b", list(range(12))) == 0


def test_nothing_is_taken_where_there_is_too_little() -> None:
    with small_blocks():
        device = Device((FULL,), (12,))
        assert device.open("a", list(range(30))) is not None
        assert device.open("b", list(range(30))) is None
        assert device.allocator.available() == [3]


def test_a_pool_must_hold_one_whole_sequence() -> None:
    with pytest.raises(ValueError, match="expected more than the 10 of a table"):
        BlockAllocator((FULL,), (10,), reuse=None)


def test_sequences_without_a_key_share_nothing(device: Device) -> None:
    for _ in range(2):
        blocks, count, copy = device.allocator.open(None, list(range(10)))
        assert (count, copy) == (0, None)
        assert device.allocator.reserve(blocks, 10)
        device.allocator.filled(blocks, list(range(10)), 9)
    assert device.allocator.kept == 0
