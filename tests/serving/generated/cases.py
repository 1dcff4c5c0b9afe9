"""Whole requests to the endpoints of a table: method, address, headers and body."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from hypothesis import strategies as st

from serving.api.description.openapi import document
from serving.api.endpoint import Endpoint
from tests.serving.generated.values import ANYTHING, TEXTS, Values, damaged, some_of


@dataclass(frozen=True, slots=True)
class Case:
    """One request."""

    method: str
    path: str
    """Encoded, perhaps with a query."""
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    server: int = 0
    """Which of several servers it is sent to."""

    def __repr__(self) -> str:
        return f"{self.method} {self.path} {self.headers} {self.body[:2000]!r} to server {self.server}"


def cases(endpoints: tuple[Endpoint[Any], ...], *, servers: int) -> st.SearchStrategy[Case]:
    """Requests to these endpoints. Those with a body are most of them."""
    values = Values(document(endpoints))
    with_body = [endpoint for endpoint in endpoints if endpoint.request is not None]
    weighted = st.one_of(st.sampled_from(with_body), st.sampled_from(with_body), st.sampled_from(endpoints))
    return weighted.flatmap(lambda endpoint: _case(endpoint, values, servers))


@st.composite
def _case(draw: Callable[..., Any], endpoint: Endpoint[Any], values: Values, servers: int) -> Case:
    headers = {"X-Api-Key": "key"}
    body = b""
    if endpoint.request is not None:
        headers["Content-Type"] = draw(_mostly("application/json", ("text/plain", "", "application/problem+json; a=b")))
        body = draw(_bodies(endpoint, values))
    elif not draw(st.integers(0, 9)):
        body = draw(st.binary(max_size=20))
    for name, wild in (("X-Request-Id", _HEADERS), ("Accept", _HEADERS), ("Origin", _HEADERS), ("X-Api-Key", _HEADERS)):
        if not draw(st.integers(0, 19)):
            headers[name] = draw(wild)
    method = draw(_mostly(endpoint.method, ("GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH")))
    return Case(method, draw(_paths(endpoint)), headers, body, draw(st.integers(0, servers - 1)))


_HEADERS = st.one_of(
    st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20),
    st.sampled_from(("*/*", "null", "http://localhost:1234", "https://evil.example", "a" * 4000)),
)


def _mostly(usual: Any, others: tuple[Any, ...]) -> st.SearchStrategy[Any]:
    return st.integers(0, 19).flatmap(lambda chance: st.sampled_from(others) if chance == 7 else st.just(usual))


@st.composite
def _paths(draw: Callable[..., Any], endpoint: Endpoint[Any]) -> str:
    path = draw(st.sampled_from(endpoint.paths))
    names = st.one_of(
        TEXTS, st.sampled_from(("default", "chatcmpl-1", "acme/tiny-mistral", "..", "%2e%2e%2f", "a/../b"))
    )
    path = re.sub(r"\{\w+:\w+\}", lambda _: quote(draw(names)[:200], safe=draw(st.sampled_from(("", "/")))), path)
    if not draw(st.integers(0, 19)):
        path += draw(
            st.sampled_from(("/", "//", "/x", "%00", "?", "?a=1&a=2&=&%ff", "?fail_on_no_slot=1", "?" + "q" * 500))
        )
    return path


def _bodies(endpoint: Endpoint[Any], values: Values) -> st.SearchStrategy[bytes]:
    good = _good(endpoint, values)
    return st.one_of(
        *(good.map(_encoded) for _ in range(4)),
        *(good.flatmap(damaged).map(_encoded) for _ in range(3)),
        good.flatmap(damaged).flatmap(damaged).map(_encoded),
        ANYTHING.map(_encoded),
        good.map(_encoded).flatmap(_cut),
    )


@st.composite
def _good(draw: Callable[..., Any], endpoint: Endpoint[Any], values: Values) -> dict[str, Any]:
    """The endpoint's example with some other fields, all of which match the schema."""
    schema = values.schema(endpoint.request.__name__) if endpoint.request is not None else {}
    body = dict(endpoint.example)
    for name in draw(some_of(sorted(schema["properties"]), most=5)):
        body[name] = draw(values.of(schema["properties"][name], name))
    if "stream" in schema["properties"] and draw(st.booleans()):
        body["stream"] = True
    unread = [each.name for each in endpoint.fields or () if each.name not in schema["properties"]]
    for name in draw(some_of(unread, most=1)):
        body[name] = draw(ANYTHING)
    return body


def _encoded(value: Any) -> bytes:
    # Lone surrogates cannot be encoded as UTF-8, but may be spelt in JSON.
    return json.dumps(value).encode()


@st.composite
def _cut(draw: Callable[..., Any], body: bytes) -> bytes:
    """A body that is no JSON, or no UTF-8, or has a field twice."""
    place = draw(st.integers(0, len(body)))
    return draw(
        st.sampled_from(
            (
                *(body[:place], body[:place] + b"\xff" + body[place:], body + b"}", b"\xef\xbb\xbf" + body, b""),
                *(
                    body[:-1] + b',"model":"default","model":"base"}',
                    body.replace(b'"', b"'"),
                    body.decode().encode("utf-16"),
                ),
                *(body.replace(b":", b": NaN,", 1), b"[" * 5000, body[:place] + b"\x00" + body[place:]),
            )
        )
    )
