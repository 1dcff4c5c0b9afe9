"""The bridge from the engine's thread to asyncio: submits sequences and passes their events to the waiting call."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from serving.api.errors import (
    ApiError,
    DeadlineError,
    GenerationError,
    InvalidRequestError,
    UnavailableError,
    without_paths,
)
from serving.api.service.callers import CALLER
from serving.api.service.request_metrics import RequestMetrics
from serving.engine.messages import Engine, Event, Request

MAX_PENDING_EVENTS = 8192
"""Events buffered for one call whose client reads slowly; beyond this, the call is ended."""

MAX_PENDING_ITEMS = 2**19
"""The same limit in items: events and log-probabilities, alternatives included, of about 200 bytes each."""

MAX_HELD_ITEMS = 1_000_000
"""Items buffered for all calls together; beyond this, the call with the most is ended."""


@dataclass(frozen=True, slots=True)
class ChoiceEvent:
    """An event of one choice of a call."""

    index: int
    event: Event


class EventRouter:
    """Passes each event to its call. There is one for the whole server, so an engine round wakes the event loop once:
    every submission passes the same `deliver`, and the engine groups a round's events by it.

    Args:
      metrics: is told of all events, and of requests that are given up.
    """

    def __init__(self, metrics: RequestMetrics | None = None) -> None:
        self._metrics = RequestMetrics() if metrics is None else metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._routes: dict[str, tuple[GenerationCall, int]] = {}
        self._held: dict[GenerationCall, int] = {}
        self._items = 0
        self.deliver = self._deliver

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Set the event loop that the calls run on."""
        self._loop = loop

    def add(self, generation: GenerationCall, requests: Sequence[Request]) -> None:
        self._routes.update({request.request_id: (generation, index) for index, request in enumerate(requests)})

    def remove(self, requests: Sequence[Request]) -> None:
        """Give up the requests whose last events have not arrived."""
        for request in requests:
            if self._routes.pop(request.request_id, None) is not None:
                self._metrics.abandoned(request)

    def forget(self, requests: Sequence[Request]) -> None:
        """Forget requests that the engine did not take."""
        for request in requests:
            self._routes.pop(request.request_id, None)

    def fail_all(self, message: str) -> None:
        """End every live choice with an error, after the engine died without ending its requests."""
        self._route([Event(request_id=key, finish_reason="error", error=message) for key in list(self._routes)])

    def hold(self, generation: GenerationCall, items: int) -> None:
        """Add `items` (negative to subtract) to the count of a call's buffered items. If the total is too large, the
        call with the most is ended."""
        now = self._held.get(generation, 0) + items
        if now:
            self._held[generation] = now
        else:
            self._held.pop(generation, None)
        self._items += items
        if self._items > MAX_HELD_ITEMS:
            max(self._held, key=lambda each: self._held[each]).overflow()

    @property
    def held(self) -> int:
        """Items buffered for all calls."""
        return self._items

    @property
    def live(self) -> int:
        """Choices whose last event has not arrived."""
        return len(self._routes)

    def _deliver(self, events: Sequence[Event]) -> None:
        """Called on the engine's thread."""
        if self._loop is not None:
            # RuntimeError: the loop is closed, so no call is waiting.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._route, tuple(events))

    def _route(self, events: Sequence[Event]) -> None:
        woken: dict[int, GenerationCall] = {}
        for event in events:
            route = self._routes.get(event.request_id)
            if route is None:
                continue
            generation, index = route
            self._metrics.observe(generation.requests[index], event)
            if event.finish_reason is not None:
                del self._routes[event.request_id]
            generation.take(ChoiceEvent(index, event))
            woken[id(generation)] = generation
        for generation in woken.values():
            generation.wake()


class GenerationCall:
    """The choices of one call in progress. Iterate over `events()` once; leaving it early cancels unfinished ones.

    It must be made in the context of its request, whose caller shares the engine with others.
    """

    def __init__(self, engine: Engine, router: EventRouter, requests: Sequence[Request]) -> None:
        self._engine = engine
        self._router = router
        self.caller = CALLER.get()
        self.requests = tuple(replace(request, caller=self.caller) if self.caller else request for request in requests)
        """One for each choice, in their order."""
        self._unfinished = {index: request.request_id for index, request in enumerate(requests)}
        self._pending: deque[ChoiceEvent] = deque()
        self._items = 0
        """In `_pending`."""
        self._ready = asyncio.Event()
        self._ended: ApiError | None = None
        """Why the call was ended before its last event."""

    def submit(self) -> None:
        """Queue all the choices or none.

        Raises:
          QueueFullError: the engine's queue has no room for all of them.
          EngineUnavailableError: the engine takes no requests now.
        """
        self._router.add(self, self.requests)
        try:
            self._engine.submit(self.requests, self._router.deliver)
        except BaseException:
            self._router.forget(self.requests)
            raise

    def cancel(self) -> None:
        """End unfinished choices, without waiting; safe to call at any time and more than once."""
        self._router.remove(self.requests)
        for request_id in self._unfinished.values():
            self._engine.cancel(request_id)
        self._unfinished.clear()
        self._drop()

    def take(self, event: ChoiceEvent) -> None:
        """Accept an event from the router."""
        if len(self._pending) >= MAX_PENDING_EVENTS or self._items >= MAX_PENDING_ITEMS:
            self.overflow()
        if self._ended is not None:
            return
        self._pending.append(event)
        self._items += (items := _items_of(event.event))
        self._router.hold(self, items)

    def overflow(self) -> None:
        """Drop buffered events: the client is too slow, and gets an error."""
        self.end(GenerationError("the client read too slowly", code="client_too_slow"))

    def end(self, error: ApiError) -> None:
        """End the call early: buffered events are dropped, and `events` raises this error. The first error counts."""
        if self._ended is None:
            self._ended = error
        self._drop()
        self._ready.set()

    def _drop(self) -> None:
        self._pending.clear()
        items, self._items = self._items, 0
        self._router.hold(self, -items)

    def wake(self) -> None:
        self._ready.set()

    async def events(
        self, *, idle: float | None = None, limit: float | None = None
    ) -> AsyncGenerator[ChoiceEvent | None]:
        """Events in order of arrival until every choice is finished; None after each `idle` seconds without any.

        Raises:
          DeadlineError: `limit` seconds have passed.
          GenerationError: a choice failed, or the client reads too slowly; the other choices are cancelled.
          InvalidRequestError: the request leaves no token to choose.
          RequestCancelledError: another request cancelled it.
          UnavailableError: the server is stopping and ended a choice.
        """
        now = asyncio.get_running_loop().time
        deadline = None if limit is None else now() + limit
        try:
            while self._unfinished:
                # Checked before every event, not only after waiting: a slow reader never waits, and the last event may
                # be among those dropped, after which nothing would wake us.
                if self._ended is not None:
                    raise self._ended
                if limit is not None and deadline is not None and now() >= deadline:
                    raise DeadlineError(limit)
                if not self._pending:
                    self._ready.clear()
                    left = None if deadline is None else deadline - now()
                    try:
                        async with asyncio.timeout(
                            left if idle is None or (left is not None and left < idle) else idle
                        ):
                            await self._ready.wait()
                    except TimeoutError:
                        if deadline is None or now() < deadline:
                            yield None
                    continue
                choice = self._pending.popleft()
                self._items -= (items := _items_of(choice.event))
                self._router.hold(self, -items)
                if choice.event.finish_reason is not None:
                    self._unfinished.pop(choice.index, None)
                    _raise_for(choice.event)
                yield choice
        finally:
            self.cancel()


def _items_of(event: Event) -> int:
    """Approximate number of items in an event."""
    logprobs = sum(1 + len(token.top) for token in event.logprobs)
    scores = len(event.prompt_logprobs) * (1 + len(event.prompt_logprobs[0].top)) if event.prompt_logprobs else 0
    return 1 + logprobs + scores + sum(1 + token.weights.size // 32 for token in event.scalings)


def _raise_for(event: Event) -> None:
    error: ApiError
    if event.refused:
        error = InvalidRequestError(event.error or "the request cannot be completed", code="constraint_failed")
    elif event.finish_reason == "error":
        error = GenerationError(without_paths(event.error or "the engine could not finish the completion"))
    elif event.finish_reason == "cancelled":
        error = UnavailableError("the completion was ended because the server is stopping", code="cancelled")
    else:
        return
    raise error
