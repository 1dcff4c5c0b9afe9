"""Reads the bytes of a request's body, within limits on size, time, and the memory of all bodies together."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar import Request
from litestar.exceptions import InternalServerException

from serving.api.errors import BodyTimeoutError, ClientGoneError
from serving.api.service.body_budget import Reservation

BODY_TIMEOUT = 60.0
"""Seconds that a client has to send its whole body."""


async def read_body(request: Request[Any, Any, Any], reservation: Reservation) -> bytes:
    """Read the body. Bytes are counted as they arrive, so that a Content-Length alone reserves no memory.

    Raises:
      BodyTimeoutError: it did not arrive in time.
      ClientGoneError: the client disconnected before it was complete.
      UnavailableError: other bodies take all the memory.
      RequestEntityTooLarge: it is larger than the application reads.
    """
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for chunk in request.stream():
                reservation.grow_to(len(body) + len(chunk))
                body += chunk
    except TimeoutError as error:
        raise BodyTimeoutError(f"the body did not arrive within {BODY_TIMEOUT:g} seconds") from error
    except InternalServerException as error:
        raise ClientGoneError("the client closed the connection") from error
    return bytes(body)
