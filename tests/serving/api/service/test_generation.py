"""The bridge between the engine's events and a call that reads them slowly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator

import pytest

import serving.api.service.generation
from mistral_jax.runtime.sampling.params import SamplingParams
from serving.api.errors import DeadlineError, GenerationError
from serving.api.service.generation import ChoiceEvent, EventRouter, GenerationCall
from serving.engine.messages import Event, Request
from tests.serving.fakes import FakeEngine, prompt_logprob, token_logprob

pytestmark = pytest.mark.anyio


def submitted(router: EventRouter, engine: FakeEngine) -> GenerationCall:
    router.attach(asyncio.get_running_loop())
    requests = [Request(request_id="a", prompt=(1,), params=SamplingParams(seed=0, max_tokens=9))]
    generation = GenerationCall(engine, router, requests)
    generation.submit()
    return generation


def deliver(router: EventRouter, count: int, *, last: bool) -> None:
    events = [Event(request_id="a", text=str(i)) for i in range(count)]
    if last:
        events.append(Event(request_id="a", finish_reason="stop"))
    router.deliver(events)


async def read(events: AsyncGenerator[ChoiceEvent | None], *, seconds: float = 0.0) -> None:
    """Read to the end, with so much work for each event."""
    async for event in events:
        assert event is not None, "waits for events that were dropped"
        time.sleep(seconds)


async def test_a_reader_who_lost_events_is_told_even_if_no_more_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.api.service.generation, "MAX_PENDING_EVENTS", 3)
    router, engine = EventRouter(), FakeEngine()  # not started: all events are ours
    generation = submitted(router, engine)
    deliver(router, 2, last=False)
    events = generation.events(idle=0.01)
    await anext(events)
    # While the reader is busy with the first event, more come than are held; the last of all is among those dropped.
    deliver(router, 5, last=True)
    await asyncio.sleep(0)
    with pytest.raises(GenerationError, match="too slowly"):
        await asyncio.wait_for(read(events), 15)


async def test_a_reader_of_scores_may_be_so_far_behind_and_no_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.api.service.generation, "MAX_PENDING_ITEMS", 3 * 7 + 1)
    router, engine = EventRouter(), FakeEngine()
    generation = submitted(router, engine)
    events = generation.events(idle=0.01)
    scores = Event(request_id="a", prompt_logprobs=(prompt_logprob(100, 2),) * 7)
    # What was read is held no more.
    for _ in range(3):
        router.deliver([scores])
        await anext(events)
    router.deliver([scores, scores])
    with pytest.raises(GenerationError, match="too slowly"):
        await asyncio.wait_for(read(events), 15)


async def test_the_time_limit_holds_for_a_reader_who_is_always_behind() -> None:
    router, engine = EventRouter(), FakeEngine()
    generation = submitted(router, engine)
    deliver(router, 100, last=False)
    with pytest.raises(DeadlineError):
        await read(generation.events(limit=0.02), seconds=0.005)
    assert engine.cancelled == ["a"]


async def test_what_slow_readers_hold_together_is_bounded_and_the_slowest_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving.api.service.generation, "MAX_HELD_ITEMS", 1000)
    router, engine = EventRouter(), FakeEngine()
    router.attach(asyncio.get_running_loop())
    calls: dict[str, GenerationCall] = {}
    for name in "abc":
        request = Request(request_id=name, prompt=(1,), params=SamplingParams(seed=0, max_tokens=9))
        calls[name] = GenerationCall(engine, router, [request])
        calls[name].submit()

    async def told(name: str, events: int, *, last: bool = False) -> None:
        logprobs = (token_logprob(65, 9),)  # with the event itself eleven items
        news = [Event(request_id=name, text="x", logprobs=logprobs) for _ in range(events)]
        router.deliver([*news, *([Event(request_id=name, finish_reason="stop")] if last else [])])
        await asyncio.sleep(0)

    await told("a", 50)
    await told("b", 35)
    assert router.held == 85 * 11
    await told("c", 10, last=True)  # which is not the slowest
    assert router.held == 45 * 11 + 1
    with pytest.raises(GenerationError, match="too slowly"):
        await read(calls["a"].events())
    assert engine.cancelled == ["a"]
    await read(calls["c"].events())
    assert router.held == 35 * 11
    calls["b"].cancel()
    assert router.held == 0
