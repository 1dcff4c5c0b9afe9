"""Who calls, and places that are shared fairly between callers: none waits behind the flood of another."""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar

import anyio

CALLER: ContextVar[int] = ContextVar("caller", default=0)
"""The caller of the request in progress: the number of its API key, from 1; 0 if the server has no keys."""


class FairLimiter(anyio.CapacityLimiter):
    """Bounds how many do something at a time, as anyio's limiter, in whose place it is used. Of those that wait, the
    callers take turns; the requests of one caller are first come, first served.

    Used only on the event loop.
    """

    def __new__(cls, places: int) -> FairLimiter:
        # Anyio's own makes a limiter of the running backend.
        return object.__new__(cls)

    def __init__(self, places: int) -> None:
        self._free = places
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}
        """By caller; the next turn is that of the first."""

    async def __aenter__(self) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(CALLER.get(), deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it had been given the place at that moment
                self._give_back()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._give_back()

    def _give_back(self) -> None:
        """Pass the place on, or keep it if nobody waits."""
        while self._waiting:
            caller = next(iter(self._waiting))
            turns = self._waiting.pop(caller)
            turn = turns.popleft()
            if turns:
                self._waiting[caller] = turns  # behind all others
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
