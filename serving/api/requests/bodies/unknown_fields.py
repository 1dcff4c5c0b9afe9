"""Unknown fields of a request: found, and reported or refused.

Without `--strict-fields` they are ignored; the response header `X-Ignored-Fields` and a log line name them, each with
the nearest known name: `tempreature;nearest=temperature`.

Names come from clients. At most `MOST_NAMED` are reported, truncated and with everything but letters, digits and
`[]._-` percent-encoded, so that they can neither inject into a header or a log line nor make it long.
"""

from __future__ import annotations

import difflib
import functools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

import msgspec
from litestar.types import Message, Scope

from serving.api.endpoint import Body, Endpoint
from serving.api.errors import InvalidRequestError
from serving.api.log.request_id import request_id_of
from serving.api.requests.bodies.unsupported_fields import refuse

logger = logging.getLogger("mistral_jax.server")

HEADER = "X-Ignored-Fields"
MOST_NAMED = 8
LONGEST_NAME = 48
"""Bytes of a name that are reported."""

_NOTHING = frozenset({b"null", b"[]", b"{}", b'""'})
"""Values without effect: clients that send a whole object back send many of them."""

_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_objects = msgspec.json.Decoder(list[dict[str, msgspec.Raw]])


@dataclass(frozen=True, slots=True)
class UnknownFields:
    """The unknown fields of one request."""

    named: tuple[tuple[str, str | None], ...] = ()
    """Of the first `MOST_NAMED`: path, encoded for a header, and the nearest known name, if one is near."""
    count: int = 0

    def __bool__(self) -> bool:
        return self.count > 0

    @property
    def header(self) -> str:
        """The value of `X-Ignored-Fields`."""
        items = [path if nearest is None else f"{path};nearest={nearest}" for path, nearest in self.named]
        if self.count > len(self.named):
            items.append(f"...;more={self.count - len(self.named)}")
        return ", ".join(items)

    def __str__(self) -> str:
        items = [path if nearest is None else f"{path} (did you mean {nearest}?)" for path, nearest in self.named]
        if self.count > len(self.named):
            items.append(f"and {self.count - len(self.named)} more")
        return ", ".join(items)

    def refusal(self) -> InvalidRequestError:
        """The error with `--strict-fields`."""
        return InvalidRequestError(
            f"unknown fields: {self}; this server refuses unknown fields (--strict-fields), leave them out",
            param=self.named[0][0],
            code="unknown_field",
        )


def unknown_fields(endpoint: Endpoint[Any], fields: Body, decoded: Any) -> UnknownFields:
    """The unknown fields of a body and of the objects in it, except null and empty ones.

    Args:
      fields: the body's fields.
      decoded: the same body in the endpoint's schema, which has the nested objects.

    Raises:
      InvalidRequestError: an object has a field that is not implemented.
    """
    named: list[tuple[str, str | None]] = []
    count = 0
    for prefix, known, name in _unknown(endpoint, "", "", fields, decoded):
        count += 1
        if len(named) < MOST_NAMED:
            named.append((prefix + _shown(name), _nearest(name, known) if len(name) <= LONGEST_NAME else None))
    return UnknownFields(tuple(named), count)


def _unknown(
    endpoint: Endpoint[Any], where: str, prefix: str, fields: Body, decoded: Any
) -> Iterator[tuple[str, frozenset[str], str]]:
    """For each unknown field of an object and of those nested in it: the object's path, its known names, the name.

    Args:
      where: the object, as a key of `endpoint.known`.
      prefix: the reported path of the object, with list indices.
    """
    names, refused = endpoint.known[where], endpoint.refused_inside[where]
    for name, value in fields.items():
        if name in refused:
            refuse(refused[name], value, f"{prefix}{name}")
        if name not in names and not _asks_nothing(value):
            yield prefix, names, name
    for inner, field, is_list in endpoint.nested[where]:
        value = getattr(decoded, field, None)
        if is_list and isinstance(value, list) and value:
            objects = zip(cast("list[Any]", value), _objects.decode(fields[field]), strict=True)
            for index, (item, raw) in enumerate(objects):
                yield from _unknown(endpoint, inner, f"{prefix}{field}[{index}].", raw, item)
        elif not is_list and isinstance(value, msgspec.Struct):
            yield from _unknown(endpoint, inner, f"{prefix}{field}.", _object.decode(fields[field]), value)


def _shown(name: str) -> str:
    """A name from a client, truncated and encoded for a header."""
    return quote(name[:LONGEST_NAME].encode("utf-8", "replace")[:LONGEST_NAME], safe="[]")


def unused(where: str, names: Sequence[str]) -> UnknownFields:
    """Names in the object at `where` that nothing reads."""
    return UnknownFields(tuple((f"{where}.{_shown(name)}", None) for name in names[:MOST_NAMED]), len(names))


def _asks_nothing(value: msgspec.Raw) -> bool:
    view = memoryview(value)
    return len(view) <= 4 and bytes(view) in _NOTHING


@functools.lru_cache(maxsize=1024)
def _nearest(name: str, known: frozenset[str]) -> str | None:
    """The known name most similar to `name`, if one is near."""
    plain = name.lower().replace("-", "_")
    lookalikes = difflib.get_close_matches(plain, sorted(known), n=1, cutoff=0.7)
    if lookalikes:
        return lookalikes[0]
    squeezed = plain.replace("_", "")
    return next((other for other in sorted(known) if other.replace("_", "") == squeezed), None)


def report_ignored(scope: Scope, fields: UnknownFields, *, strict: bool) -> None:
    """Refuse a request with unknown fields, or report them in the log and the header of its response.

    Raises:
      InvalidRequestError: `strict` is set.
    """
    if not fields:
        return
    if strict:
        raise fields.refusal()
    logger.warning("request %s: ignored fields: %s", request_id_of(scope), fields)
    state = scope.setdefault("state", {})
    before = state.get("ignored_fields")
    state["ignored_fields"] = fields.header if before is None else f"{before}, {fields.header}"


async def add_ignored_fields(message: Message, scope: Scope) -> None:
    """A `before_send` hook: adds the header to the response of a request with unknown fields, also to streams and
    errors."""
    if message["type"] == "http.response.start" and (header := scope.setdefault("state", {}).get("ignored_fields")):
        message["headers"] = [*message.get("headers", ()), (HEADER.lower().encode(), header.encode("ascii"))]
