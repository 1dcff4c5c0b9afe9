"""Server-sent events: a completion as a stream, each event sent as soon as it is ready, with something as keep-alive
while there are none. An error after the headers is an event, too. How events are written is the framing's `wire`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from typing import Any

from litestar import Request, Response
from litestar.response.base import ASGIResponse
from litestar.types import Receive, Scope, Send

from serving.api.errors import api_error
from serving.api.log.exchange import Exchange
from serving.api.log.request_id import request_id_of
from serving.api.responses.framing import Framing
from serving.api.service.generation import GenerationCall

logger = logging.getLogger("mistral_jax.server")

SEND_TIMEOUT = 60.0
"""Seconds that a client may take to read one event before its stream is ended."""

_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def event_stream(
    generation: GenerationCall,
    framing: Framing,
    exchange: Exchange,
    *,
    keep_alive: float,
    limit: float | None,
    request_id: str = "",
) -> AsyncGenerator[bytes]:
    """The bytes of a submitted call's stream, one event at a time."""
    wire = framing.wire
    try:
        for chunk in framing.opening():
            yield wire.event(chunk)
        async with contextlib.aclosing(generation.events(idle=keep_alive, limit=limit)) as events:
            async for choice_event in events:
                if choice_event is None:
                    yield wire.keep_alive
                    continue
                for chunk in framing.chunks(choice_event):
                    yield wire.event(chunk)
        for chunk in framing.closing():
            yield wire.event(chunk)
    except Exception as exception:
        error = api_error(exception)
        if error is not exception:
            logger.error("request %s failed while streaming", request_id, exc_info=exception)
        exchange.error = error.message
        for chunk in framing.failed(error):
            yield wire.event(chunk)
    if wire.end:
        yield wire.end


class EventStream(Response[None]):
    """A streaming response. However it ends (the client disconnects or reads too slowly), the call ends with it."""

    def __init__(
        self,
        generation: GenerationCall,
        framing: Framing,
        exchange: Exchange,
        *,
        keep_alive: float,
        limit: float | None,
    ) -> None:
        super().__init__(None, media_type="text/event-stream", headers=_HEADERS)
        self._generation = generation
        self._framing = framing
        self._exchange = exchange
        self._keep_alive = keep_alive
        self._limit = limit

    def to_asgi_response(self, app: Any, request: Request[Any, Any, Any], **_options: Any) -> ASGIResponse:
        events = event_stream(
            self._generation,
            self._framing,
            self._exchange,
            keep_alive=self._keep_alive,
            limit=self._limit,
            request_id=request_id_of(request.scope),
        )
        return _EventStreamResponse(events, self._end, self._exchange, headers=self.headers, media_type=self.media_type)

    def _end(self) -> None:
        self._generation.cancel()
        self._exchange.usage = self._framing.usage()
        self._exchange.response = self._framing.whole


class _EventStreamResponse(ASGIResponse):
    _should_set_content_length = False

    def __init__(
        self, events: AsyncGenerator[bytes], end: Callable[[], None], exchange: Exchange, **options: Any
    ) -> None:
        super().__init__(**options)
        self._events = events
        self._end = end
        self._exchange = exchange

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sending = asyncio.create_task(self._send(send))
        leaving = asyncio.create_task(disconnected(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not sending.done():
                self._exchange.error = "the client closed the connection"
        finally:
            # End the call first: closing the connection may take a while.
            self._end()
            leaving.cancel()
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending

    async def _send(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            await self.start_response(send)
            try:
                async for event in events:
                    async with asyncio.timeout(SEND_TIMEOUT):
                        await send({"type": "http.response.body", "body": event, "more_body": True})
            except TimeoutError:
                self._exchange.error = "the client read too slowly"
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})


async def disconnected(receive: Receive) -> None:
    """Return when the client has closed the connection; the request's body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass
