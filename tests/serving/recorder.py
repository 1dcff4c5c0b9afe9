"""Checks every response and every stream event that the tests of the server produce against our own OpenAPI document,
and that errors are short and tell nothing of the inside.

A `Recorder` wraps the application, so it sees what any client gets, streams that are cut off included. It is stricter
than the document: what a schema does not mention is wrong, too, although clients must accept it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import referencing
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.description.openapi import document
from serving.api.endpoint import Endpoint
from serving.api.schemas.documented import IF_FIELD

UNROUTED = frozenset({401, 403, 404, 405, 431})
"""Statuses of responses at addresses, or of methods, that are not in the document."""

LARGEST_ERROR = 32 * 1024
"""Most bytes of an error response."""
_TELLING = re.compile(
    rb"Traceback|site-packages|, line \d+|0x[0-9a-f]{8,}|" + re.escape(str(Path(__file__).parents[2]).encode())
)
"""What no error may tell: where our code lies, how it runs, and addresses in memory."""
_LARGE = 2**16
"""Bytes from which on a response is large."""
_BASE = "urn:openapi"
_PURE = frozenset(
    (
        *("$ref", "type", "properties", "required", "additionalProperties", "items", "anyOf", "enum", "discriminator"),
        *("title", "description", "default", "example", IF_FIELD),
    )
)
"""Keywords whose verdict depends on the form of a value, and on texts at names with an `enum`, alone."""


@dataclass(slots=True)
class Exchange:
    """One request and what was sent for it."""

    method: str
    path: str
    request: bytes = b""
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytearray = field(default_factory=bytearray)
    complete: bool = False


class Recorder:
    """Middleware around the whole application.

    Args:
      app: the application.
      endpoints: those that it serves.
    """

    def __init__(self, app: ASGIApp, endpoints: tuple[Endpoint[Any], ...]) -> None:
        self._app = app
        self._description = description_of(endpoints)
        self.checked = 0
        """Responses that were compared."""
        self.problems: list[str] = []
        self._later: list[Exchange] = []
        """Large responses, which are compared at the end: meanwhile the event loop is not ours."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = Exchange(scope["method"], scope["path"])

        async def watched_receive() -> Any:
            message = await receive()
            if message["type"] == "http.request" and len(exchange.request) < 2**16:
                exchange.request += message["body"]
            return message

        async def watched_send(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                pairs = ((name.decode("latin-1"), value.decode("latin-1")) for name, value in message["headers"])
                exchange.headers = {name.lower(): value for name, value in pairs}
            elif message["type"] == "http.response.body":
                exchange.body += message["body"]
                exchange.complete = not message.get("more_body")

        try:
            await self._app(scope, watched_receive, watched_send)
        finally:
            if exchange.status is not None:
                self.checked += 1
                if len(exchange.body) < _LARGE:
                    self.problems += self._description.problems(exchange)
                else:
                    self._later.append(exchange)

    def check(self) -> None:
        """Raises AssertionError: a response was not as described."""
        for exchange in self._later:
            self.problems += self._description.problems(exchange)
        self._later.clear()
        problems, self.problems = self.problems, []
        assert not problems, "responses that differ from the OpenAPI document:\n" + "\n".join(problems[:5])


@cache
def description_of(endpoints: tuple[Endpoint[Any], ...]) -> Description:
    return Description(endpoints)


class Description:
    """The OpenAPI document of some endpoints, ready to compare responses with."""

    def __init__(self, endpoints: tuple[Endpoint[Any], ...]) -> None:
        self.document = document(endpoints)
        self._routes = [(_pattern(path), endpoint) for endpoint in endpoints for path in endpoint.paths]
        self._routes.sort(key=lambda route: len(route[1].parameters))
        self._schemas = Schemas(self.document)

    def operation(self, method: str, path: str) -> Mapping[str, Any] | None:
        """The operation that answers at an address; None: there is none."""
        path = "/" + "/".join(part for part in path.split("/") if part)
        there = [endpoint for pattern, endpoint in self._routes if pattern.fullmatch(path)]
        for endpoint in there:
            # A path without parameters hides those with some, for all methods.
            if len(endpoint.parameters) > len(there[0].parameters):
                break
            if method == endpoint.method or (method == "HEAD" and endpoint.takes_head):
                return self.document["paths"][endpoint.template][endpoint.method.lower()]
        return None

    def problems(self, exchange: Exchange) -> list[str]:
        """What of a response is not as described."""
        where = f"{exchange.method} {exchange.path} {exchange.status}"
        return [f"{where}: {problem}" for problem in self._problems(exchange)]

    def _problems(self, exchange: Exchange) -> Iterator[str]:
        if exchange.method == "OPTIONS" and exchange.status == 204:
            return  # a preflight
        operation = self.operation(exchange.method, exchange.path)
        if operation is None:
            if exchange.status not in UNROUTED:
                yield f"there is no such operation, and a status that is none of {sorted(UNROUTED)}"
            described: Mapping[str, Any] | None = self.document["components"]["responses"]["Error"]
        else:
            described = operation["responses"].get(str(exchange.status))
        if described is None:
            yield f"the status is not described; {sorted(operation['responses'] if operation else ())} are"
            return
        for name in ("x-request-id",):
            if name not in exchange.headers:
                yield f"no header {name}"
        if exchange.status is not None and exchange.status >= 400:
            if len(exchange.body) > LARGEST_ERROR:
                yield f"an error of {len(exchange.body)} bytes"
            if (told := _TELLING.search(exchange.body)) is not None and told.group() not in exchange.request:
                yield f"an error that tells {told.group()!r}"
        described = self._schemas.resolved(described)
        media_type = exchange.headers.get("content-type", "").partition(";")[0]
        if media_type not in described["content"]:
            yield f"the content type is {media_type!r}, and {sorted(described['content'])} are described"
        elif exchange.method != "HEAD":
            yield from self._content(described["content"][media_type]["schema"], media_type, exchange)

    def _content(self, schema: Mapping[str, Any], media_type: str, exchange: Exchange) -> Iterator[str]:
        if media_type == "text/event-stream":
            try:
                events = events_in(bytes(exchange.body), complete=exchange.complete)
            except AssertionError as error:
                yield f"not well formed: {error}"
                return
            for data in events:
                yield from self._data(schema, data, exchange)
        elif not exchange.complete:
            return
        elif media_type == "application/json":
            yield from self._data(schema, exchange.body.decode(), exchange)

    def _data(self, schema: Mapping[str, Any], text: str, exchange: Exchange) -> Iterator[str]:
        try:
            value = json.loads(text, parse_constant=_no_number)
        except ValueError as error:
            yield f"not JSON ({error}): {text[:200]!r}"
            return
        yield from self._schemas.problems(schema, value, request=exchange.request)


class Schemas:
    """Validators of a document's schemas, in which nothing may stand that is not described.

    What has been found valid is remembered by its form: a stream has thousands of events of a few forms.
    """

    def __init__(self, whole: Mapping[str, Any]) -> None:
        strict = _strict(whole)
        resource = referencing.Resource.from_contents(strict, default_specification=referencing.jsonschema.DRAFT202012)
        self._registry = referencing.Registry().with_resource(_BASE, resource)
        self._whole = strict
        named = strict["components"]["schemas"].values()
        self._named = frozenset(name for schema in named for name in _names_with_enums(schema))
        self._validators: dict[str, jsonschema.protocols.Validator] = {}
        self._known: dict[str, set[Any]] = {}
        """The forms that have been found valid, by schema."""

    def resolved(self, value: Mapping[str, Any]) -> Mapping[str, Any]:
        """A part of the document, or what it refers to."""
        while "$ref" in value:
            found: Any = self._whole
            for name in value["$ref"].removeprefix(_BASE).removeprefix("#/").split("/"):
                found = found[name]
            value = found
        return value

    def problems(self, schema: Mapping[str, Any], value: Any, *, request: bytes = b"") -> Iterator[str]:
        """What is wrong with a value.

        Args:
          request: the body that was answered, which decides about the alternatives with `IF_FIELD`.
        """
        schema = _applicable(_strict(schema), request)
        key = json.dumps(schema)
        if key not in self._validators:
            assert (unknown := self._keywords(schema) - _PURE) == set(), f"forms do not decide about {unknown}"
            self._validators[key] = jsonschema.Draft202012Validator(schema, registry=self._registry)
        known = self._known.setdefault(key, set())
        form = _form(value, self._named)
        if form in known:
            return
        error = jsonschema.exceptions.best_match(self._validators[key].iter_errors(value))
        if error is None:
            known.add(form)
        else:
            yield f"{error.json_path}: {error.message[:500]} in {json.dumps(value)[:500]}"

    def _keywords(self, schema: Any) -> set[str]:
        """The keywords of a schema and of all that it refers to."""
        found: set[str] = set()
        waiting, seen = [schema], set[str]()
        while waiting:
            each = waiting.pop()
            found |= each.keys()
            if (reference := each.get("$ref")) is not None and reference not in seen:
                seen.add(reference)
                waiting.append(self.resolved(each))
            waiting += _parts(each)
        return found


def events_in(stream: bytes, *, complete: bool) -> list[str]:
    """The data of a stream's events. Only comments, one event name and one line of data may stand in an event.

    Raises:
      AssertionError: the stream is not well formed.
    """
    blocks = stream.decode().split("\n\n")
    last = blocks.pop()
    assert not (complete and last), f"the stream ends inside of an event: {last[-200:]!r}"
    found: list[str] = []
    done = False
    for block in blocks:
        assert not done, f"after [DONE]: {block[:200]!r}"
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        names = [line for line in lines if line.startswith("event: ")]
        data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
        assert len(names) <= 1, block[:200]
        assert len(names) + len(data) == len(lines), block[:200]
        assert len(data) == 1 or not lines, block[:200]
        done = data == ["[DONE]"]
        found += data if not done else []
        if names and data:
            assert json.loads(data[0])["type"] == names[0].removeprefix("event: "), block[:200]
    return found


def _pattern(path: str) -> re.Pattern[str]:
    parts = re.split(r"(\{\w+:\w+\})", path)
    return re.compile("".join(_segment(part) if part.startswith("{") else re.escape(part) for part in parts))


def _segment(parameter: str) -> str:
    return ".+" if parameter.endswith(":path}") else "[^/]+"


def _strict(schema: Any) -> Any:
    """A copy in which objects have no other properties than those described."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    copy = {name: _strict(value) for name, value in schema.items() if name not in ("example", "examples")}
    if isinstance(copy.get("$ref"), str) and copy["$ref"].startswith("#"):
        copy["$ref"] = _BASE + copy["$ref"]
    if isinstance(copy.get("properties"), dict) and copy.get("type") == "object":
        copy.setdefault("additionalProperties", False)
    return copy


def _applicable(schema: Mapping[str, Any], request: bytes) -> Mapping[str, Any]:
    """Without the alternatives that only some requests get."""
    if "anyOf" not in schema:
        return schema
    given = [
        option for option in schema["anyOf"] if IF_FIELD not in option or f'"{option[IF_FIELD]}"'.encode() in request
    ]
    return {**schema, "anyOf": given}


def _form(value: Any, named: frozenset[str], name: str = "") -> Any:
    """What decides whether a value is valid: its structure, and texts at the names that have an enum."""
    if isinstance(value, dict):
        return tuple((key, _form(item, named, key)) for key, item in value.items())
    if isinstance(value, list):
        return frozenset(_form(item, named, name) for item in value)
    return value if isinstance(value, str) and name in named else type(value)


def _parts(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The schemas that stand in a schema."""
    yield from schema.get("properties", {}).values()
    yield from schema.get("anyOf", ())
    yield from (schema[name] for name in ("items", "additionalProperties") if isinstance(schema.get(name), Mapping))


def _names_with_enums(schema: Mapping[str, Any]) -> Iterator[str]:
    for name, inner in schema.get("properties", {}).items():
        if '"enum"' in json.dumps(inner):
            yield name
        yield from _names_with_enums(inner)
    for part in _parts(schema):
        yield from _names_with_enums(part)


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")
