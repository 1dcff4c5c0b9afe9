"""The OpenAPI document, generated from the endpoints' records and their schemas."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from serving.api.endpoint import Endpoint, Text
from serving.api.schemas import ErrorResponse
from serving.version import version

REFERENCE = "#/components/schemas/"

_ERRORS = {
    400: "an invalid or unsupported value; `error.param` names the field",
    401: "no valid API key, if the server requires one",
    403: "not allowed: the host name, the web origin, or a change of adapters",
    404: "no such model or path",
    408: "the body did not arrive in time",
    409: "the name is taken, or the adapter cannot be unloaded",
    413: "the body is too large",
    415: "the body is not sent as JSON (Content-Type: application/json)",
    500: "the completion could not be finished",
    503: "loading, stopping, or the queue is full; see Retry-After",
    507: "there is no room for another adapter",
}


@cache
def document(endpoints: tuple[Endpoint[Any], ...]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these endpoints."""
    documented = [endpoint for endpoint in endpoints if endpoint.documented]
    schemas = [schema for endpoint in documented for schema in _schemas(endpoint)]
    distinct = dict.fromkeys([*schemas, ErrorResponse])
    _, components = msgspec.json.schema_components(distinct, ref_template=REFERENCE + "{name}")
    paths: dict[str, Any] = {}
    for endpoint in documented:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(endpoint)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mistral-jax",
            "version": version(),
            "description": "Mistral-family language models behind the OpenAI HTTP API. "
            "Every path below /v1 is served without it, too.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "apiKey": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
            },
        },
    }


def _schemas(endpoint: Endpoint[Any]) -> list[type]:
    found = [endpoint.request, endpoint.response, endpoint.chunk]
    found += [schema for _, schema in endpoint.other_responses.values()]
    return [schema for schema in found if isinstance(schema, type)]


def _operation(endpoint: Endpoint[Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": endpoint.operation_id, "summary": endpoint.summary}
    if endpoint.request is not None:
        content = _content(endpoint.request)
        content["application/json"]["example"] = endpoint.example
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = _responses(endpoint)
    if endpoint.parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in endpoint.parameters
        ]
    if endpoint.public:
        operation["security"] = []
    return operation


def _responses(endpoint: Endpoint[Any]) -> dict[str, Any]:
    response = endpoint.response
    if isinstance(response, Text):
        description, content = response.description, {response.media_type: {"schema": {"type": "string"}}}
    else:
        description, content = (response.__doc__ or "").strip(), _content(response)
    if endpoint.chunk is not None:
        content |= _content(endpoint.chunk, "text/event-stream")
    others = {status: (_ERRORS[status], ErrorResponse) for status in endpoint.errors} | dict(endpoint.other_responses)
    responses: dict[str, Any] = {"200": {"description": description, "content": content}}
    for status, (words, schema) in others.items():
        responses[str(status)] = {"description": words, "content": _content(schema)}
    return responses


def _content(schema: type, media_type: str = "application/json") -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": REFERENCE + schema.__name__}}}
