"""A request's body: read within limits of size and time, decoded into its schema, with errors that name the field."""

from __future__ import annotations

import re
from typing import Any, cast

import anyio.to_thread
import msgspec
from litestar import Request

from serving.body_reading import Reservation, read_body
from serving.compatibility import Endpoint, refuse_unsupported
from serving.errors import InvalidRequestError, UnsupportedMediaTypeError
from serving.exchange import exchange_of
from serving.json_bounds import UNCOUNTED, check_bounds, check_fields
from serving.lifecycle import ServiceHost

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
      UnavailableError: other bodies take all the room.
      BodyTimeoutError: it did not arrive in time.
      ClientGoneError: the client left before it was complete.
      RequestEntityTooLarge: it is larger than the application reads.
    """
    check_content_type(request.headers.get("content-type"))
    host = cast("ServiceHost", request.app.state["host"])
    exchange = exchange_of(request.scope)
    reservation = Reservation(host.bodies)
    exchange.at_end.append(reservation.end)
    body = await read_body(request, reservation)
    if exchange.is_wanted:
        exchange.request = body
    if len(body) <= UNCOUNTED:
        return decode(body, decoder, endpoint)
    return await anyio.to_thread.run_sync(decode, body, decoder, endpoint, limiter=host.decoding)


def check_content_type(content_type: str | None) -> None:
    """Refuse a body that does not say that it is JSON.

    A page of any site can make a browser post a body without a type, or as a form or plain text, and no browser asks before. For
    JSON it asks first (a CORS preflight), and is told no.

    Raises:
      UnsupportedMediaTypeError: it says something else, or nothing.
    """
    given = (content_type or "").partition(";")[0].strip().lower()
    if not given:
        raise UnsupportedMediaTypeError("the request has no Content-Type; send it with Content-Type: application/json")
    if given != "application/json" and not given.endswith("+json"):
        raise UnsupportedMediaTypeError(
            f"content type {given[:100]!r} is not supported; send it with Content-Type: application/json"
        )


def decode[Schema: msgspec.Struct](
    body: bytes, decoder: msgspec.json.Decoder[Schema], endpoint: Endpoint | None
) -> Schema:
    """A body's text as its schema.

    Raises:
      InvalidRequestError: as for `read_request`.
    """
    try:
        check_bounds(body)
        fields = _shallow.decode(body)
        check_fields(len(fields))
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
