"""Whose turn it is: callers share the slots evenly, whatever they send."""

from __future__ import annotations

from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_jax.runtime.sampling.params import SamplingParams
from serving.engine.messages import Request
from serving.engine.scheduler import LiveSequence, Scheduler
from serving.engine.waiting import MOST_OVERTAKEN
from tests.serving.engine.test_scheduler import FakeChunk, roomy_cache


def sequence(caller: int, name: str = "", priority: int = 0) -> LiveSequence[FakeChunk]:
    params = SamplingParams(seed=0)
    request = Request(request_id=name, prompt=(1,), params=params, priority=priority, caller=caller)
    return LiveSequence(request=request, deliver=lambda events: None, max_tokens=1)


def scheduler(slots: int = 1, queue_limit: int = 1000) -> Scheduler[FakeChunk]:
    sizes: Any = {"slots": slots, "queue_limit": queue_limit, "chunk_budget": 4}
    return Scheduler(**sizes, chunks=lambda _request, _start: (), cache=roomy_cache(slots))


def served(s: Scheduler[FakeChunk], number: int) -> list[int]:
    """The callers of the next admissions; each admitted sequence ends at once."""
    order: list[int] = []
    for _ in range(number):
        (admitted,) = s.admit()
        order.append(admitted.request.caller)
        s.retire(admitted)
    return order


def test_callers_take_turns_however_many_requests_each_has() -> None:
    s = scheduler()
    s.submit([sequence(1) for _ in range(100)])
    s.submit([sequence(2), sequence(2), sequence(3)])
    assert served(s, 8) == [1, 2, 3, 1, 2, 1, 1, 1]


def test_one_caller_is_first_come_first_served() -> None:
    s = scheduler()
    s.submit([sequence(7, str(index)) for index in range(20)])
    names = []
    while admitted := s.admit():
        names.append(admitted[0].request.request_id)
        s.retire(admitted[0])
    assert names == [str(index) for index in range(20)]


def test_who_has_fewer_sequences_in_slots_is_next() -> None:
    s = scheduler(slots=4)
    s.submit([sequence(1) for _ in range(9)])
    first = s.admit()
    assert [each.request.caller for each in first] == [1] * 4
    s.submit([sequence(2) for _ in range(9)])
    callers = []
    for each in first:
        s.retire(each)
        callers += [admitted.request.caller for admitted in s.admit()]
    # Two of each, and the slots stay divided so.
    assert callers == [2, 2, 1, 2] or Counter(callers) == {2: 2, 1: 2}
    running = Counter(each.request.caller for each in s.slots if each is not None)
    assert running == {1: 2, 2: 2}


def test_priorities_are_among_the_requests_of_one_caller() -> None:
    s = scheduler()
    s.submit([sequence(1, priority=-(2**31)) for _ in range(50)])
    s.submit([sequence(2, priority=5)])
    assert 2 in served(s, 2)


def test_each_caller_has_a_queue_of_its_own() -> None:
    s = scheduler(slots=1, queue_limit=3)
    s.submit([sequence(1) for _ in range(4)])
    s.admit()
    assert not s.has_room(1, caller=1)
    assert s.has_room(3, caller=2)
    assert not s.has_room(4, caller=2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(-2, 2)), max_size=30),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 3),
    st.integers(-2, 2),
)
def test_nobody_waits_behind_the_flood_of_others(
    before: list[tuple[int, int]], flooding: list[int], own: int, priority: int
) -> None:
    """A newcomer waits for its own earlier requests, and for one of each other caller between two of them."""
    s = scheduler()
    s.submit([sequence(caller, priority=urgency) for caller, urgency in before])
    s.submit([sequence(9) for _ in range(own)])
    patient = sequence(9, "patient", priority)
    s.submit([patient])
    callers = {caller for caller, _ in before} | set(flooding) | {9}
    for _ in range(len(callers) * (own + 1) * (MOST_OVERTAKEN + 1)):
        s.submit([sequence(caller, priority=-9) for caller in flooding])
        (admitted,) = s.admit()
        s.retire(admitted)
    assert patient.gone


def test_a_cancelled_request_leaves_the_queue_of_its_caller() -> None:
    s = scheduler()
    kept, cancelled = sequence(1), sequence(2)
    s.submit([kept, cancelled])
    s.retire(cancelled)
    assert s.waiting == 1
    assert s.has_room(1001, caller=2)
    assert s.admit() == [kept]
