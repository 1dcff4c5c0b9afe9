"""The OpenAPI document, generated from the endpoints' records and their schemas."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from serving.api.endpoint import Endpoint, OneOf, Text
from serving.version import version

REFERENCE = "#/components/schemas/"

_ERRORS = {
    400: "an invalid or unsupported value; `error.param` names the field",
    401: "no valid API key, if the server requires one",
    403: "not allowed: the host name, the web origin, or a change of adapters",
    404: "no such model or path",
    408: "the body did not arrive in time",
    413: "the body is too large",
    415: "the body is not sent as JSON (Content-Type: application/json)",
    499: "the request was cancelled by its id",
    500: "the completion could not be finished",
    501: "this server does not enable the endpoint",
    503: "loading, stopping, or the queue is full; see Retry-After",
    507: "there is no room for another adapter",
}


@cache
def document(endpoints: tuple[Endpoint[Any], ...]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these endpoints."""
    documented = [endpoint for endpoint in endpoints if endpoint.documented]
    types = dict.fromkeys(each for endpoint in documented for each in _types(endpoint))
    found, components = msgspec.json.schema_components(types, ref_template=REFERENCE + "{name}")
    schemas = dict(zip(types, found, strict=True))
    paths: dict[str, Any] = {}
    for endpoint in documented:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
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


Schemas = dict[Any, dict[str, Any]]
"""The schema of each type, with references to those that have names."""


def _types(endpoint: Endpoint[Any]) -> list[Any]:
    found: list[Any] = [endpoint.request, *(schema for _, schema in endpoint.other_responses.values())]
    for told in (endpoint.response, endpoint.chunk):
        found += told.shapes if isinstance(told, OneOf) else () if isinstance(told, Text) else (told,)
    found += [endpoint.error_shape.schema] if endpoint.errors else []
    return [each for each in found if each is not None]


def _operation(endpoint: Endpoint[Any], schemas: Schemas) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": endpoint.operation_id, "summary": endpoint.summary}
    if endpoint.request is not None:
        content = _content(schemas[endpoint.request])
        content["application/json"]["example"] = endpoint.example
        operation["requestBody"] = {"required": True, "content": content}
    operation["responses"] = _responses(endpoint, schemas)
    if endpoint.parameters:
        operation["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in endpoint.parameters
        ]
    if endpoint.public:
        operation["security"] = []
    return operation


def _responses(endpoint: Endpoint[Any], schemas: Schemas) -> dict[str, Any]:
    response = endpoint.response
    others = {status: (_ERRORS[status], endpoint.error_shape.schema) for status in endpoint.errors}
    others |= dict(endpoint.other_responses)
    responses: dict[str, Any] = {}
    if response is not None:
        responses["200"] = _success(response, endpoint.chunk, schemas)
    for status, (words, schema) in others.items():
        responses[str(status)] = {"description": words, "content": _content(schemas[schema])}
    return responses


def _success(
    response: type[msgspec.Struct] | OneOf | Text, chunk: type[msgspec.Struct] | OneOf | None, schemas: Schemas
) -> dict[str, Any]:
    if isinstance(response, Text):
        description, content = response.description, {response.media_type: {"schema": {"type": "string"}}}
    else:
        description = response.description if isinstance(response, OneOf) else (response.__doc__ or "").strip()
        content = _content(_schema(response, schemas))
    if chunk is not None:
        content |= _content(_schema(chunk, schemas), "text/event-stream")
    return {"description": description, "content": content}


def _schema(told: type | OneOf, schemas: Schemas) -> dict[str, Any]:
    if not isinstance(told, OneOf):
        return schemas[told]
    shapes = [schemas[shape] for shape in told.shapes]
    return shapes[0] if len(shapes) == 1 else {"anyOf": shapes}


def _content(schema: dict[str, Any], media_type: str = "application/json") -> dict[str, Any]:
    return {media_type: {"schema": schema}}
