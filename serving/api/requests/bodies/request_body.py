"""Reads a request's body within limits on size and time, and decodes it into its schema. Errors name the field."""

from __future__ import annotations

import re
from typing import Any

import anyio.to_thread
import msgspec
from litestar import Request

from serving.api.endpoint import Endpoint
from serving.api.errors import InvalidRequestError, UnsupportedMediaTypeError
from serving.api.json_bounds import UNCOUNTED, check_bounds, check_fields
from serving.api.log.exchange import exchange_of
from serving.api.requests.bodies.body_reading import read_body
from serving.api.requests.bodies.unknown_fields import UnknownFields, report_ignored, unknown_fields
from serving.api.requests.bodies.unsupported_fields import refuse_unsupported
from serving.api.service.body_budget import Reservation
from serving.api.service.lifecycle import ServiceHost

_FIELD = re.compile(r" - at `(?:key in )?\$\.?(.*)`$")
_shallow = msgspec.json.Decoder(dict[str, msgspec.Raw])
_number = msgspec.json.Decoder(float)


async def read_request[BodyT](
    request: Request[Any, Any, Any], endpoint: Endpoint[BodyT], host: ServiceHost, *, strict: bool = False
) -> BodyT:
    """Read and decode the body. Unknown fields are reported in the response's headers and the log.

    Args:
      endpoint: has the schema, and the fields by which unsupported and unknown ones are found.
      strict: refuse unknown fields.

    Raises:
      InvalidRequestError: it is not JSON, has a wrong type, has an unsupported field, or, with `strict`, an unknown
        one.
      UnsupportedMediaTypeError: its content type is not JSON.
      UnavailableError: other bodies take all the memory.
      BodyTimeoutError: it did not arrive in time.
      ClientGoneError: the client disconnected before it was complete.
      RequestEntityTooLarge: it is larger than the application reads.
    """
    check_content_type(request.headers.get("content-type"))
    exchange = exchange_of(request.scope)
    reservation = Reservation(host.bodies)
    exchange.at_end.append(reservation.end)
    body = await read_body(request, reservation)
    if exchange.is_wanted:
        exchange.request = body
    if len(body) <= UNCOUNTED:
        schema, unknown = decode(body, endpoint)
    else:
        schema, unknown = await anyio.to_thread.run_sync(decode, body, endpoint, limiter=host.decoding)
    report_ignored(request.scope, unknown, strict=strict)
    return schema


def check_content_type(content_type: str | None) -> None:
    """Refuse a body whose content type is not JSON.

    A page of any site can make a browser post a body without a type, or as a form or plain text, without a preflight.
    For JSON the browser first sends a CORS preflight, which is refused.

    Raises:
      UnsupportedMediaTypeError: the type is another, or missing.
    """
    given = (content_type or "").partition(";")[0].strip().lower()
    if not given:
        raise UnsupportedMediaTypeError("the request has no Content-Type; send it with Content-Type: application/json")
    if given != "application/json" and not given.endswith("+json"):
        raise UnsupportedMediaTypeError(
            f"content type {given[:100]!r} is not supported; send it with Content-Type: application/json"
        )


def decode[BodyT](body: bytes, endpoint: Endpoint[BodyT]) -> tuple[BodyT, UnknownFields]:
    """Decode a body into its schema, and find its unknown fields.

    Raises:
      InvalidRequestError: see `read_request`.
    """
    try:
        check_bounds(body)
        fields = _shallow.decode(body)
        check_fields(len(fields))
        refuse_unsupported(endpoint, fields)
        schema = endpoint.decoder.decode(body)
        return schema, UnknownFields() if endpoint.fields is None else unknown_fields(endpoint, fields, schema)
    except msgspec.ValidationError as error:
        raise _wrong_type(str(error), body) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        what = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
        raise InvalidRequestError(f"the body is not valid JSON: {what}", code="invalid_json") from error
    except RecursionError as error:
        raise InvalidRequestError("the body is not valid JSON: it is nested too deeply", code="invalid_json") from error


def _wrong_type(message: str, body: bytes) -> InvalidRequestError:
    """The error for a validation error of msgspec, whose message ends in the path of the wrong value."""
    match = _FIELD.search(message)
    path = match.group(1) if match else ""
    what = message[: match.start()] if match else message
    field, of_map, _rest = path.partition("[...]")
    if not of_map:
        return InvalidRequestError(f"{path}: {what}" if path else what, param=path or None, code="invalid_type")
    # msgspec's path has `[...]` for any key of a map. Keys are client input, so only the message shows them.
    key = _first_wrong_number(body, field)
    where = field if key is None else f"{field}[{key[:50]!r}]"
    return InvalidRequestError(f"{where}: {what}", param=field, code="invalid_type")


def _first_wrong_number(body: bytes, field: str) -> str | None:
    """The first key of a map whose value is not a number; None if there is none."""
    value = _shallow.decode(body).get(field)
    if value is None:
        return None
    for key, number in _shallow.decode(value).items():
        try:
            _number.decode(number)
        except msgspec.DecodeError:
            return key
    return None
