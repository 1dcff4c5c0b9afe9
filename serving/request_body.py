"""A request's body: read within limits of size and time, decoded into its schema, with errors that name the field."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from litestar import Request
from litestar.exceptions import InternalServerException

from serving.compatibility import Endpoint, refuse_unsupported
from serving.errors import BodyTimeoutError, ClientGoneError, InvalidRequestError, UnsupportedMediaTypeError
from serving.request_log import exchange_of

BODY_TIMEOUT = 60.0
"""Seconds that a client has to send its whole body."""

_FIELD = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw])


async def read_request[Schema: msgspec.Struct](
    request: Request[Any, Any, Any], decoder: msgspec.json.Decoder[Schema], endpoint: Endpoint | None
) -> Schema:
    """The decoded body.

    Args:
      endpoint: whose known and unsupported fields are refused.

    Raises:
      InvalidRequestError: it is not JSON, has a wrong type somewhere, or asks for what is not implemented.
      UnsupportedMediaTypeError: its content type is not JSON.
      BodyTimeoutError: it did not arrive in time.
      ClientGoneError: the client left before it was complete.
      RequestEntityTooLarge: it is larger than the application reads.
    """
    content_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if content_type != "application/json" and not content_type.endswith("+json"):
        raise UnsupportedMediaTypeError(f"content type {content_type[:100]!r} is not supported; send application/json")
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            body = await request.body()
    except TimeoutError as error:
        raise BodyTimeoutError(f"the body did not arrive within {BODY_TIMEOUT:g} seconds") from error
    except InternalServerException as error:
        raise ClientGoneError("the client closed the connection") from error
    exchange_of(request.scope).request = body
    return decode(body, decoder, endpoint)


def decode[Schema: msgspec.Struct](
    body: bytes, decoder: msgspec.json.Decoder[Schema], endpoint: Endpoint | None
) -> Schema:
    """A body's text as its schema.

    Raises:
      InvalidRequestError: as for `read_request`.
    """
    try:
        fields = _shallow.decode(body)
        if endpoint is not None:
            refuse_unsupported(endpoint, fields)
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        match = _FIELD.search(message)
        path = match.group(1) if match else ""
        what = message[: match.start()] if match else message
        raise InvalidRequestError(
            f"{path}: {what}" if path else what, param=path or None, code="invalid_type"
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequestError(f"the body is not valid JSON: {what}", code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequestError("the body is not valid JSON: it is nested too deeply", code="invalid_json") from error
