"""Places that callers share: limiters of work off the event loop, and the memory for bodies."""

from __future__ import annotations

import asyncio

import anyio.to_thread
import pytest

from serving.api.errors import UnavailableError
from serving.api.service.body_budget import SMALL_BODY, BodyBudget, Reservation
from serving.api.service.callers import CALLER, FairLimiter

pytestmark = pytest.mark.anyio
MIB = 2**20


async def work(limiter: FairLimiter, caller: int, done: list[int], seconds: float = 0.0) -> None:
    CALLER.set(caller)
    async with limiter:
        done.append(caller)
        await asyncio.sleep(seconds)


async def in_order(callers: list[int], *, places: int = 1) -> list[int]:
    limiter = FairLimiter(places)
    done: list[int] = []
    await asyncio.gather(*(work(limiter, caller, done) for caller in callers))
    return done


async def test_callers_take_turns_and_one_is_first_come_first_served() -> None:
    assert await in_order([1] * 6 + [2, 3, 2]) == [1, 1, 2, 3, 1, 2, 1, 1, 1]
    assert await in_order([0] * 5) == [0] * 5


async def test_no_more_work_than_there_are_places() -> None:
    limiter, busy, most = FairLimiter(3), 0, 0

    async def count() -> None:
        nonlocal busy, most
        async with limiter:
            busy += 1
            most = max(most, busy)
            await asyncio.sleep(0.001)
            busy -= 1

    await asyncio.gather(*(count() for _ in range(20)))
    assert (most, busy) == (3, 0)


async def test_who_gives_up_waiting_does_not_keep_a_place() -> None:
    limiter, done = FairLimiter(1), list[int]()
    async with limiter:
        waiting = [asyncio.create_task(work(limiter, 2, done)) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
    # The place has been given to the second, which gives up before it notices.
    waiting[1].cancel()
    await asyncio.wait(waiting)
    assert done == [2]
    async with asyncio.timeout(1), limiter:
        pass


async def test_it_takes_the_place_of_anyios_own() -> None:
    limiter = FairLimiter(1)
    assert await anyio.to_thread.run_sync(lambda: 5, limiter=limiter) == 5
    assert [await anyio.to_thread.run_sync(CALLER.get, limiter=limiter)] == [0]


def reservation(budget: BodyBudget, caller: int) -> Reservation:
    token = CALLER.set(caller)
    try:
        return Reservation(budget)
    finally:
        CALLER.reset(token)


def most(budget: BodyBudget, caller: int) -> int:
    """The mebibytes that a caller gets, one by one."""
    own = reservation(budget, caller)
    for size in range(1, 1000):
        try:
            own.grow_to(size * MIB + SMALL_BODY)
        except UnavailableError:
            return size - 1
    raise AssertionError


def test_a_caller_leaves_memory_for_the_bodies_of_others() -> None:
    budget = BodyBudget(10 * MIB)
    assert [most(budget, caller) for caller in (1, 2, 3)] == [64, 32, 16]
    assert most(BodyBudget(10 * MIB), 0) == 128


def test_the_largest_body_is_read_even_while_another_caller_has_one() -> None:
    budget = BodyBudget(200 * MIB)
    for caller in (1, 2):
        reservation(budget, caller).grow_to(200 * MIB)
    with pytest.raises(UnavailableError, match="API key"):
        reservation(budget, 3).grow_to(200 * MIB)
