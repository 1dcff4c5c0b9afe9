"""Who runs when: properties that hold for any mix of requests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.model.table_kinds import TableKind
from mistral_jax.runtime.blocks.allocator import BlockAllocator
from mistral_jax.runtime.sampling.params import SamplingParams
from serving.engine.messages import Request
from serving.engine.scheduler import LiveSequence, Scheduler
from serving.engine.sequence_cache import SequenceCache
from serving.engine.waiting import MOST_OVERTAKEN


@dataclass(frozen=True)
class FakeChunk:
    start: int
    count: int
    size: int


def chunks_of(request: Request, start: int = 0) -> list[FakeChunk]:
    """Chunks of 4, the rest padded to 2 or 4; the last token is left to decoding."""
    chunks: list[FakeChunk] = []
    while (left := len(request.prompt) - 1 - start) > 0:
        size = 2 if left <= 2 else 4
        chunks.append(FakeChunk(start, min(left, size), size))
        start += size
    return chunks


def sequence(name: str, prompt: int, max_tokens: int = 3, priority: int = 0) -> LiveSequence[FakeChunk]:
    params = SamplingParams(seed=0)
    request = Request(request_id=name, prompt=tuple(range(prompt)), params=params, priority=priority)
    return LiveSequence(request=request, deliver=lambda events: None, max_tokens=max_tokens)


def roomy_cache(slots: int) -> SequenceCache[LiveSequence[Any]]:
    """Room for all, and nothing is shared."""
    kinds = (TableKind(blocks=8, window=None),)
    return SequenceCache(BlockAllocator(kinds, (slots * 8 + 1,), reuse=None), rows=slots, key=lambda _: None)


def scheduler(slots: int = 2, queue_limit: int = 4, chunk_budget: int = 4) -> Scheduler[FakeChunk]:
    cache = roomy_cache(slots)
    return Scheduler(slots=slots, queue_limit=queue_limit, chunk_budget=chunk_budget, chunks=chunks_of, cache=cache)


def test_free_slots_take_those_who_wait_longest_lowest_slot_first():
    s = scheduler(slots=2)
    a, b, c = (sequence(name, 1) for name in "abc")
    s.submit([a, b, c])
    assert s.admit() == [a, b]
    assert (a.slot, b.slot) == (0, 1)
    assert (s.running, s.waiting) == (2, 1)
    s.retire(a)
    assert s.admit() == [c]
    assert c.slot == 0


def test_lower_priorities_are_admitted_earlier_and_equal_ones_in_order():
    s = scheduler(slots=1, queue_limit=9)
    asked = {"a": 2, "b": 0, "c": 1, "d": 0, "e": -5}
    s.submit([sequence(name, 1, priority=priority) for name, priority in asked.items()])
    order = []
    while admitted := s.admit():
        order += [each.request.request_id for each in admitted]
        s.retire(admitted[0])
    # The first has been overtaken as often as one may be.
    assert order == ["e", "b", "d", "a", "c"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=12), st.integers(0, 5))
def test_nobody_waits_for_ever_behind_lower_priorities(before: list[int], patience: int):
    s = scheduler(slots=1, queue_limit=100)
    patient = sequence("patient", 1, priority=patience)
    s.submit([*(sequence(f"before{i}", 1, priority=p) for i, p in enumerate(before)), patient])
    for admissions in range(1, 1000):
        # Urgent ones keep coming.
        s.submit([sequence(f"urgent{admissions}", 1, priority=-9)])
        [admitted] = s.admit()
        s.retire(admitted)
        if admitted is patient:
            break
    assert admissions <= (len(before) + 1) * (MOST_OVERTAKEN + 1)


def test_sequences_may_get_several_tokens_while_nobody_waits():
    s = scheduler(slots=2)
    s.submit([sequence("a", 1, max_tokens=99), sequence("b", 4, max_tokens=99)])
    s.admit()
    assert not s.next_round().several  # b's prompt
    assert s.next_round().several
    s.submit([sequence("waits", 1)])
    s.admit()
    assert not s.next_round().several


def test_a_newcomer_catches_up_in_chunks_while_the_others_decode_every_round():
    s = scheduler(slots=2, chunk_budget=4)
    old, new = sequence("old", 1, max_tokens=9), sequence("new", 13)
    s.submit([old])
    s.admit()
    s.next_round()
    s.submit([new])
    s.admit()
    for chunk in range(2):
        round_ = s.next_round()
        assert [c.size for _, c in round_.prefills] == [4], chunk
        assert round_.decodes == (old,)
    last = s.next_round()
    assert [c.size for _, c in last.prefills] == [4]
    # The prefill is dispatched before the decode step of the same round, so the newcomer takes part at once.
    assert last.decodes == (old, new)


def test_short_prompts_share_a_round_up_to_the_budget():
    s = scheduler(slots=4, chunk_budget=4)
    s.submit([sequence(name, 3) for name in "abc"])
    s.admit()
    assert [q.request.request_id for q, _ in s.next_round().prefills] == ["a", "b"]
    assert [q.request.request_id for q, _ in s.next_round().prefills] == ["c"]


def test_a_short_prompt_does_not_wait_for_a_long_one():
    s = scheduler(slots=3, chunk_budget=4)
    long, other, short = sequence("long", 41), sequence("other", 41), sequence("short", 3)
    s.submit([long, other])
    s.admit()
    s.next_round()
    s.submit([short])
    s.admit()
    rounds = [{q.request.request_id for q, _ in s.next_round().prefills} for _ in range(2)]
    assert {"short"} <= rounds[0] | rounds[1]
    assert {"long"} <= rounds[0] | rounds[1]


def test_a_long_prompt_is_not_held_up_by_a_stream_of_short_ones():
    s = scheduler(slots=2, chunk_budget=4)
    long = sequence("long", 41)
    s.submit([long])
    rounds = 0
    while not rounds or long.chunks:
        short = sequence("short", 5)
        s.submit([short])
        s.admit()
        s.next_round()
        s.retire(short)
        rounds += 1
    assert rounds <= 20


def test_prompts_of_one_length_are_done_one_after_another():
    s = scheduler(slots=3, chunk_budget=4)
    s.submit([sequence(name, 9) for name in "abc"])
    s.admit()
    assert [[q.request.request_id for q, _ in s.next_round().prefills] for _ in range(6)] == [
        [name] for name in "aabbcc"
    ]


def test_a_chunk_larger_than_the_budget_runs_alone():
    s = scheduler(slots=2, chunk_budget=2)
    s.submit([sequence("long", 9), sequence("other", 9)])
    s.admit()
    assert len(s.next_round().prefills) == 1


def test_no_more_steps_are_dispatched_than_tokens_were_asked_for():
    s = scheduler()
    a = sequence("a", 1, max_tokens=2)
    s.submit([a])
    s.admit()
    assert s.next_round().decodes == (a,)
    assert s.next_round().decodes == (a,)
    assert not s.next_round()


def test_a_sequence_that_generates_nothing_ends_once_with_its_last_chunk():
    s = scheduler(slots=2, chunk_budget=4)
    nothing, other = sequence("nothing", 9, max_tokens=0), sequence("other", 1, max_tokens=9)
    s.submit([nothing, other])
    s.admit()
    first, last, after = (s.next_round() for _ in range(3))
    assert (first.ends, last.ends, after.ends) == ((), (nothing,), ())
    assert [q for q, _ in last.prefills] == [nothing]
    assert all(round_.decodes == (other,) for round_ in (first, last, after))


def test_a_sequence_without_anything_to_run_ends_in_its_first_round():
    s = scheduler()
    nothing = sequence("nothing", 1, max_tokens=0)
    s.submit([nothing])
    s.admit()
    round_ = s.next_round()
    assert (round_.prefills, round_.decodes, round_.ends) == ((), (), (nothing,))
    assert round_
    assert not s.next_round()


def test_tokens_held_counts_prompt_and_dispatched_steps():
    s = scheduler()
    a = sequence("a", 5)
    s.submit([a])
    s.admit()
    s.next_round()
    assert a.tokens_held == 5


def test_the_queue_is_bounded_and_free_slots_do_not_count_as_waiting():
    s = scheduler(slots=1, queue_limit=2)
    assert s.has_room(3)
    assert not s.has_room(4)
    s.submit([sequence(name, 1) for name in "abc"])
    s.admit()
    assert not s.has_room(1)


def test_retiring_twice_or_from_the_queue_is_safe():
    s = scheduler(slots=1)
    a, b = sequence("a", 1), sequence("b", 1)
    s.submit([a, b])
    s.admit()
    s.retire(b)
    s.retire(b)
    s.retire(a)
    s.retire(a)
    assert (s.running, s.waiting) == (0, 0)
    c = sequence("c", 1)
    s.submit([c])
    assert s.admit() == [c]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 5), st.integers(0, 12)), min_size=1, max_size=12),
    st.integers(1, 4),
)
def test_whatever_arrives_and_leaves_every_sequence_runs_to_its_end_and_every_slot_comes_back(jobs, slots):
    s = scheduler(slots=slots, queue_limit=100)
    everyone = [sequence(str(i), prompt, tokens) for i, (prompt, tokens, _) in enumerate(jobs)]
    s.submit(everyone)
    cancel_at = {id(q): cancel for q, (_, _, cancel) in zip(everyone, jobs, strict=True) if cancel}
    prefilled = {id(q): 0 for q in everyone}
    decoded = {id(q): 0 for q in everyone}
    for step in range(1, 1000):
        for q in everyone:
            if cancel_at.get(id(q)) == step:
                s.retire(q)
        s.admit()
        round_ = s.next_round()
        slots_used = [q.slot for q in round_.decodes]
        assert len(set(slots_used)) == len(slots_used)
        assert all(0 <= slot < slots for slot in slots_used)
        assert sum(c.size for _, c in round_.prefills) <= max(4, round_.prefills[0][1].size if round_.prefills else 0)
        for q, chunk in round_.prefills:
            assert not q.gone
            prefilled[id(q)] += chunk.size
        for q in round_.decodes:
            assert not q.gone
            assert prefilled[id(q)] >= len(q.request.prompt) - 1
            decoded[id(q)] += 1
            if decoded[id(q)] == q.max_tokens:
                s.retire(q)
        for q in round_.ends:
            assert not q.gone
            assert q.max_tokens == 0
            assert prefilled[id(q)] >= len(q.request.prompt) - 1
            s.retire(q)
        if not s.running and not s.waiting:
            break
    assert all(q.gone for q in everyone)
    assert all(decoded[id(q)] == q.max_tokens for q in everyone if id(q) not in cancel_at)
    newcomers = [sequence(f"n{i}", 1) for i in range(slots)]
    s.submit(newcomers)
    assert sorted(q.slot for q in s.admit()) == list(range(slots))
