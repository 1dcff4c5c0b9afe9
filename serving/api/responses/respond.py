"""Runs a prepared call: submits it, then streams or awaits its completions. Cancels it if the client disconnects."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Sequence
from typing import Any

import anyio.to_thread
import msgspec
from litestar import Request, Response

from serving.api.errors import ClientGoneError
from serving.api.log.exchange import exchange_of
from serving.api.log.request_id import request_id_of
from serving.api.responses.framing import Framing
from serving.api.responses.streaming import EventStream, disconnected
from serving.api.responses.wire import Payload
from serving.api.service.generation import GenerationCall
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service
from serving.engine.messages import Request as EngineRequest


async def respond(
    request: Request[Any, Any, Any],
    host: ServiceHost,
    service: Service,
    engine_requests: Sequence[EngineRequest],
    framing: Framing,
    *,
    stream: bool,
) -> Response[Any]:
    """The response to a call, which is queued or refused before the first header is sent.

    Raises:
      QueueFullError: the engine's queue has no room for it.
      EngineUnavailableError: the engine takes no requests now.
      ApiError: an unstreamed completion failed or took too long, or its client disconnected.
    """
    exchange, limit = exchange_of(request.scope), time_left(request, host)
    generation = GenerationCall(service.engine, host.router, engine_requests)
    generation.submit()
    ids = (framing.call_id, request_id_of(request.scope))
    host.live_calls.add(generation, *ids)
    exchange.at_end.append(lambda: host.live_calls.remove(generation, *ids))
    if stream:
        return EventStream(generation, framing, exchange, keep_alive=host.settings.keep_alive, limit=limit)
    try:
        exchange.response = await while_connected(request, _collect(generation, framing, limit))
        exchange.usage = framing.usage()
    finally:
        generation.cancel()
    body = await anyio.to_thread.run_sync(msgspec.json.encode, exchange.response)
    return Response(body, status_code=200, media_type="application/json")


def time_left(request: Request[Any, Any, Any], host: ServiceHost) -> float | None:
    """Seconds until the request's deadline (`--request-timeout`); None: it has none."""
    limit = host.settings.request_timeout
    return None if limit is None else max(0.0, limit - (time.monotonic() - exchange_of(request.scope).started))


async def while_connected[T](request: Request[Any, Any, Any], work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled if the client disconnects; the request's body must have been read.

    Raises:
      ClientGoneError: it has disconnected.
    """
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(disconnected(request.receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientGoneError("the client closed the connection")
        return working.result()
    finally:
        leaving.cancel()
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await working


async def _collect(generation: GenerationCall, framing: Framing, limit: float | None) -> Payload:
    async with contextlib.aclosing(generation.events(limit=limit)) as events:
        async for choice_event in events:
            if choice_event is not None:
                framing.take(choice_event)
    # Off the event loop: with log-probabilities a long completion is a million objects.
    return await anyio.to_thread.run_sync(framing.whole)
