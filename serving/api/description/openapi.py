"""The OpenAPI document, generated from the endpoints' records and their schemas."""

from __future__ import annotations

from functools import cache
from typing import Any

import msgspec

from serving.api.endpoint import Endpoint, OneOf, Text
from serving.api.errors import OPENAI_ERRORS
from serving.version import version

REFERENCE = "#/components/schemas/"

_ERRORS = {
    400: "an invalid or unsupported value; `error.param` names the field",
    401: "no valid API key, if the server requires one",
    403: "not allowed: the host name, the web origin, or a change of adapters",
    404: "no such model or path",
    408: "the body did not arrive in time",
    413: "the body is too large",
    431: "more headers than the server reads",
    415: "the body is not sent as JSON (Content-Type: application/json)",
    499: "the request was cancelled by its id",
    500: "an internal error, or the completion could not be finished",
    501: "this server does not enable the endpoint",
    503: "loading, stopping, or the queue or the memory for bodies is full; see Retry-After",
    504: "the completion was not finished within the server's --request-timeout",
    507: "there is no room for another adapter",
}

_HEADERS = {
    name: {"description": description, "schema": {"type": "string"}}
    for name, description in {
        "X-Request-Id": "the request's own, or a new one",
        "X-Ignored-Fields": "fields of the request that are not known, if there are any",
        "Retry-After": "seconds after which it may be worth trying again, if that is known",
    }.items()
}


@cache
def document(endpoints: tuple[Endpoint[Any], ...]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of these endpoints."""
    types = dict.fromkeys([*(each for endpoint in endpoints for each in _types(endpoint)), OPENAI_ERRORS.schema])
    found, components = msgspec.json.schema_components(types, ref_template=REFERENCE + "{name}")
    schemas = dict(zip(types, found, strict=True))
    shapes = dict.fromkeys([OPENAI_ERRORS.schema, *(endpoint.error_shape.schema for endpoint in endpoints)])
    errors = _any_of([schemas[shape] for shape in shapes])
    paths: dict[str, Any] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.template, {})[endpoint.method.lower()] = _operation(endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mistral-jax",
            "version": version(),
            "description": "Mistral-family language models behind the OpenAI HTTP API. "
            "Every path below /v1 is served without it, too. At other paths the status is 404, for other methods 405, "
            "and the body that of other errors.",
        },
        "servers": [{"url": "/"}],
        "security": [{}, {"bearer": []}, {"apiKey": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "responses": {"Error": _response("an error at a path or of a method that is not described", errors)},
            "headers": _HEADERS,
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
    found.append(endpoint.error_shape.schema)
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
    others = {status: (_ERRORS[status], endpoint.error_shape.schema) for status in endpoint.statuses}
    others |= dict(endpoint.other_responses)
    responses: dict[str, Any] = {}
    if endpoint.response is not None:
        responses["200"] = _success(endpoint, endpoint.response, schemas)
    for status, (words, schema) in sorted(others.items()):
        more = ["Retry-After"] if status == 503 else []
        responses[str(status)] = _response(words, schemas[schema], *more)
    return responses


def _success(
    endpoint: Endpoint[Any], response: type[msgspec.Struct] | OneOf | Text, schemas: Schemas
) -> dict[str, Any]:
    if isinstance(response, Text):
        description, content = response.description, {response.media_type: {"schema": {"type": "string"}}}
    else:
        description = response.description if isinstance(response, OneOf) else (response.__doc__ or "").strip()
        content = _content(_any_of(_options(response, schemas)))
    if endpoint.chunk is not None:
        # The data of each event. An error after the headers is an event, too.
        events = _options(endpoint.chunk, schemas)
        error = schemas[endpoint.error_shape.schema]
        content |= _content(_any_of(events if error in events else [*events, error]), "text/event-stream")
    headers = _headers("X-Request-Id", *(["X-Ignored-Fields"] if endpoint.fields is not None else []))
    return {"description": description, "headers": headers, "content": content}


def _response(description: str, schema: dict[str, Any], *headers: str) -> dict[str, Any]:
    return {"description": description, "headers": _headers("X-Request-Id", *headers), "content": _content(schema)}


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _options(told: type | OneOf, schemas: Schemas) -> list[dict[str, Any]]:
    return [schemas[shape] for shape in (told.shapes if isinstance(told, OneOf) else (told,))]


def _any_of(options: list[dict[str, Any]]) -> dict[str, Any]:
    return options[0] if len(options) == 1 else {"anyOf": options}


def _content(schema: dict[str, Any], media_type: str = "application/json") -> dict[str, Any]:
    return {media_type: {"schema": schema}}
