"""Slots and blocks under any mix of requests: everyone ends, nothing is lost, and the device is told consistently."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistral_jax.model.table_kinds import SPARE, TableKind
from mistral_jax.runtime.blocks.allocator import BlockAllocator, Reuse
from mistral_jax.runtime.blocks.moves import CopyBlock, PutIn, SetTables, TakeOut
from mistral_jax.runtime.sampling.params import SamplingParams
from serving.engine.messages import Request
from serving.engine.scheduler import LiveSequence, Round, Scheduler
from serving.engine.sequence_cache import SequenceCache
from tests.mistral_jax.runtime.blocks.test_allocator import J, small_blocks
from tests.serving.engine.test_scheduler import FakeChunk, chunks_of

LENGTH = 40
KINDS = {
    "full": (TableKind(blocks=10, window=None),),
    # A window of 5, a budget of 4 tokens in a round, the lookahead, a block.
    "ring": (TableKind(blocks=8, window=5),),
    "both": (TableKind(blocks=8, window=5), TableKind(blocks=10, window=None)),
}


def sequence(name: str, prompt: tuple[int, ...], max_tokens: int) -> LiveSequence[FakeChunk]:
    request = Request(request_id=name, prompt=prompt, params=SamplingParams(seed=0), caller=len(prompt) % 2)
    return LiveSequence(request=request, deliver=lambda _: None, max_tokens=min(max_tokens, LENGTH - len(prompt)))


class World:
    """A scheduler, and what the device would hold: in each place, the tokens up to its own."""

    def __init__(self, kinds: tuple[TableKind, ...], counts: tuple[int, ...], *, reuse: Reuse | None, slots: int = 4):
        self.kinds, self.slots = kinds, slots
        self.cache: SequenceCache[LiveSequence[FakeChunk]] = SequenceCache(
            BlockAllocator(kinds, counts, reuse=reuse), rows=slots, key=lambda s: s.request.caller
        )
        self.scheduler = Scheduler[FakeChunk](
            slots=slots, queue_limit=100, chunk_budget=4, chunks=chunks_of, cache=self.cache
        )
        self.pools = [np.full((count, J), None, object) for count in counts]
        self.tables = [np.full((slots, kind.blocks), SPARE) for kind in kinds]
        self.taken: dict[LiveSequence[Any], list[dict[int, Any]]] = {}
        self.in_flight: list[LiveSequence[FakeChunk]] = []
        self.ended: set[str] = set()

    def text(self, s: LiveSequence[FakeChunk]) -> list[int]:
        """Tokens of the completion are made up: the number of the one before, plus one."""
        return [*s.prompt, *range(1000, 1000 + s.max_tokens)]

    def write(self, s: LiveSequence[FakeChunk], start: int, stop: int) -> None:
        text = self.text(s)
        for position in range(start, stop):
            for pool, table, kind in zip(self.pools, self.tables, self.kinds, strict=True):
                block = table[s.slot][position // J % kind.blocks]
                assert block != SPARE
                pool[block][position % J] = (s.request.caller, *text[: position + 1])
        for query in range(start, stop):
            for pool, table, kind in zip(self.pools, self.tables, self.kinds, strict=True):
                first = 0 if kind.window is None else max(query - kind.window + 1, 0)
                for position in range(first, query + 1):
                    block = table[s.slot][position // J % kind.blocks]
                    assert pool[block][position % J] == (s.request.caller, *text[: position + 1])

    def move(self, planned: Round[FakeChunk]) -> None:
        for move in planned.moves:
            match move:
                case SetTables(tables):
                    self.tables = [table.copy() for table in tables]
                case CopyBlock(sources, targets):
                    for pool, source, target in zip(self.pools, sources, targets, strict=True):
                        if target != SPARE:
                            pool[target] = pool[source].copy()
                case TakeOut(s, _, tables):
                    assert s not in self.taken
                    self.taken[s] = [
                        {entry: pool[block].copy() for entry, block in enumerate(table) if block != SPARE}
                        for pool, table in zip(self.pools, tables, strict=True)
                    ]
                case PutIn(s, tables):
                    for pool, table, saved in zip(self.pools, tables, self.taken.pop(s), strict=True):
                        for entry, content in saved.items():
                            assert table[entry] != SPARE
                            pool[table[entry]] = content

    def round(self) -> None:
        self.scheduler.admit()
        planned = self.scheduler.next_round()
        self.move(planned)
        slots = [s.slot for s in self.scheduler.live() if s.slot >= 0]
        assert len(set(slots)) == len(slots)
        for s, chunk in planned.prefills:
            assert not s.gone
            self.write(s, chunk.start, chunk.start + chunk.count)
        for s in planned.decodes:
            self.write(s, s.tokens_held - 1, s.tokens_held)
        # The results of the round before.
        for s in self.in_flight:
            if not s.gone:
                s.generated.append(1000 + len(s.generated))
                if len(s.generated) == s.max_tokens:
                    self.end(s)
        self.in_flight = list(planned.decodes)
        for s in planned.ends:
            self.end(s)

    def end(self, s: LiveSequence[FakeChunk]) -> None:
        self.scheduler.retire(s)
        self.taken.pop(s, None)
        self.ended.add(s.request.request_id)


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=24).map(tuple)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), PROMPTS, st.integers(0, 30)),
        st.tuples(st.just("choices"), PROMPTS, st.integers(1, 20)),
        st.tuples(st.just("cancel"), st.just(()), st.integers(0, 9)),
        st.tuples(st.just("rounds"), st.just(()), st.integers(1, 12)),
    ),
    max_size=20,
)


@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(sorted(KINDS)), st.integers(1, 16), ACTIONS, st.sampled_from([Reuse(), Reuse(unit=4), None]))
def test_everyone_ends_and_sees_its_own_tokens(kinds: str, more: int, actions: list[Any], reuse: Reuse | None) -> None:
    with small_blocks():
        counts = tuple(kind.blocks + more for kind in KINDS[kinds])
        world = World(KINDS[kinds], counts, reuse=reuse)
        submitted: set[str] = set()
        for action, prompt, number in actions:
            if action in ("submit", "choices"):
                names = [f"{len(submitted)}-{i}" for i in range(3 if action == "choices" else 1)]
                submitted |= set(names)
                world.scheduler.submit([sequence(name, prompt, number) for name in names])
            elif action == "cancel" and (live := world.scheduler.live()):
                world.end(live[number % len(live)])
            else:
                for _ in range(number):
                    world.round()
        for _ in range(2000):
            if not world.scheduler.live():
                break
            world.round()
        assert world.ended == submitted
        assert world.scheduler.waiting == world.scheduler.running == 0
        assert not world.taken
        assert world.cache._allocator.available() == [count - 1 for count in counts]
        assert world.cache.usage == 0


def test_the_youngest_makes_room_and_goes_on_before_others() -> None:
    with small_blocks():
        world = World(KINDS["full"], (16,), reuse=None, slots=3)
        old, young, waiting = (sequence(name, tuple(range(i, i + 8)), 24) for i, name in enumerate("abc"))
        world.scheduler.submit([old, young, waiting])
        world.scheduler.admit()
        assert (old.slot, young.slot, waiting.slot) == (0, 1, -1)
        while young.slot >= 0:
            world.round()
        assert world.cache.put_back == 1
        assert world.scheduler.waiting == 2
        steps = young.steps
        while not old.gone:
            world.round()
            assert (young.slot, young.steps, waiting.slot) == (-1, steps, -1)
        while not waiting.gone:
            world.round()
            assert young.gone or young.slot >= 0
        assert world.ended == {"a", "b", "c"}


def test_what_waits_for_room_can_be_cancelled_and_counts_as_waiting() -> None:
    with small_blocks():
        world = World(KINDS["full"], (12,), reuse=None)
        first, second, third = (sequence(name, tuple(range(24)), 10) for name in "abc")
        world.scheduler.submit([first, second, third])
        world.round()
        assert (first.slot, second.slot, world.scheduler.waiting) == (0, -1, 2)
        assert world.scheduler.live() == [first, second, third]
        world.end(second)
        assert world.scheduler.live() == [first, third]
        world.end(first)
        world.round()
        assert third.slot == 0


def test_choices_wait_for_the_first_and_share_its_blocks() -> None:
    with small_blocks():
        world = World(KINDS["full"], (41,), reuse=Reuse())
        choices = [sequence(name, tuple(range(17)), 2) for name in "abcd"]
        world.scheduler.submit(choices)
        # Four tokens in a round: the prompt of 16 takes four, and then all decode.
        for _ in range(4):
            world.round()
            assert [s.is_started for s in choices] == [True, False, False, False]
        world.round()
        assert [s.cached for s in choices] == [0, 16, 16, 16]
        assert all(s.steps for s in choices)
        assert world.cache.hits == 48


def test_nobody_waits_for_one_that_was_cancelled() -> None:
    with small_blocks():
        world = World(KINDS["full"], (41,), reuse=Reuse())
        first, second = (sequence(name, tuple(range(24)), 4) for name in "ab")
        world.scheduler.submit([first, second])
        world.round()
        world.round()
        assert not second.is_started
        world.end(first)
        world.round()
        assert second.is_started
        assert second.cached == 8
