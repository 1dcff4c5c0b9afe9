"""GET /: name, version and links. GET /version: the version. GET /docs and GET /openapi.json: the endpoints. All are
public."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec
from litestar import Response

from serving.api.description.openapi import document
from serving.api.description.page import page
from serving.api.endpoint import Call, Endpoint, OneOf, Text
from serving.api.schemas import Index, Version
from serving.version import version


async def _index(call: Call[None]) -> Index:
    links = {endpoint.link: endpoint.path for endpoint in call.endpoints if endpoint.link is not None}
    return Index(name="mistral-jax", version=version(), links=links)


async def _version(_call: Call[None]) -> Version:
    return Version(version=version())


async def _docs(call: Call[None]) -> Response[bytes]:
    headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
    return Response(_page(call.endpoints), media_type="text/html", headers=headers)


async def _openapi(call: Call[None]) -> Response[bytes]:
    return Response(msgspec.json.encode(document(call.endpoints)), media_type="application/json")


@cache
def _page(endpoints: tuple[Endpoint[Any], ...]) -> bytes:
    return page(document(endpoints)).encode()


INDEX = Endpoint(
    path="/",
    method="GET",
    takes_head=True,
    operation_id="index",
    summary="Name, version and links",
    response=Index,
    public=True,
    handler=_index,
)
VERSION = Endpoint(
    path="/version",
    method="GET",
    operation_id="version",
    summary="The version of the server",
    response=Version,
    public=True,
    handler=_version,
)
DOCS = Endpoint(
    path="/docs",
    method="GET",
    operation_id="docs",
    summary="The OpenAPI document as a page",
    response=Text("a page", "text/html"),
    public=True,
    link="docs",
    handler=_docs,
)
OPENAPI = Endpoint(
    path="/openapi.json",
    method="GET",
    operation_id="openapi",
    summary="The OpenAPI document",
    response=OneOf("the document", (dict[str, Any],)),
    public=True,
    link="openapi",
    handler=_openapi,
)
