"""The OpenAPI document, made from the schemas, and a page that shows it with no file from anywhere else."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

import msgspec
from litestar import Controller, Response, get

from serving.api.schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Completion,
    CompletionRequest,
    ErrorResponse,
    Health,
    Index,
    LoadLoraRequest,
    LoraAdapter,
    LoraAdapterList,
    Model,
    ModelList,
    UnloadedLora,
    UnloadLoraRequest,
)
from serving.version import version

_REFERENCE = "#/components/schemas/"
_ERRORS = {
    "400": "a wrong or unsupported value; `error.param` names the field",
    "401": "no valid API key, where the server asks for one",
    "403": "not allowed: the host name, the web page, or a change of adapters",
    "404": "no such model or address",
    "408": "the body did not arrive in time",
    "409": "the name is taken, or the adapter cannot be unloaded",
    "413": "the body is too large",
    "415": "the body is not sent as JSON (Content-Type: application/json)",
    "500": "the answer could not be finished",
    "503": "loading, stopping, or the queue is full; see Retry-After",
    "507": "there is no room for another adapter",
}
_GENERATION_ERRORS = ("400", "401", "403", "404", "408", "413", "415", "500", "503")
_CHANGE_ERRORS = ("400", "401", "403", "404", "409", "415", "503")
_CURL = """curl http://localhost:1234{path} -H 'Content-Type: application/json' \\
  -d '{body}'"""


def _content(schema: type, media_type: str = "application/json") -> dict[str, Any]:
    return {media_type: {"schema": {"$ref": _REFERENCE + schema.__name__}}}


def _responses(schema: type, *errors: str, stream: type | None = None) -> dict[str, Any]:
    content = _content(schema)
    if stream is not None:
        content |= _content(stream, "text/event-stream")
    responses: dict[str, Any] = {"200": {"description": (schema.__doc__ or "").strip(), "content": content}}
    for status in errors:
        responses[status] = {"description": _ERRORS[status], "content": _content(ErrorResponse)}
    return responses


def _post(name: str, summary: str, body: type, answer: type, chunk: type, example: dict[str, Any]) -> dict[str, Any]:
    content = _content(body)
    content["application/json"]["example"] = example
    return {
        "operationId": name,
        "summary": summary,
        "requestBody": {"required": True, "content": content},
        "responses": _responses(answer, *_GENERATION_ERRORS, stream=chunk),
    }


def _change(name: str, summary: str, body: type, answer: type, *errors: str, example: dict[str, Any]) -> dict[str, Any]:
    content = _content(body)
    content["application/json"]["example"] = example
    request = {"required": True, "content": content}
    return {"operationId": name, "summary": summary, "requestBody": request, "responses": _responses(answer, *errors)}


def _get(
    name: str, summary: str, answer: type, *errors: str, parameter: str | None = None, public: bool = False
) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": name, "summary": summary, "responses": _responses(answer, *errors)}
    if parameter is not None:
        operation["parameters"] = [{"name": parameter, "in": "path", "required": True, "schema": {"type": "string"}}]
    if public:
        operation["security"] = []
    return operation


@cache
def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    types = (ChatCompletionRequest, ChatCompletion, ChatCompletionChunk, CompletionRequest, Completion)
    types += (Model, ModelList, LoraAdapter, LoraAdapterList, LoadLoraRequest, UnloadLoraRequest, UnloadedLora)
    types += (Health, Index, ErrorResponse)
    _, components = msgspec.json.schema_components(types, ref_template=_REFERENCE + "{name}")
    chat_example = {"model": "default", "messages": [{"role": "user", "content": "Hello!"}], "stream": False}
    text_example = {"model": "default", "prompt": "Once upon a time", "max_tokens": 32}
    paths: dict[str, Any] = {
        "/v1/chat/completions": {
            "post": _post(
                "createChatCompletion",
                "Answer a conversation",
                ChatCompletionRequest,
                ChatCompletion,
                ChatCompletionChunk,
                chat_example,
            )
        },
        "/v1/completions": {
            "post": _post("createCompletion", "Continue texts", CompletionRequest, Completion, Completion, text_example)
        },
        "/v1/models": {"get": _get("listModels", "The served models", ModelList, "401", "503")},
        "/v1/models/{model}": {
            "get": _get("retrieveModel", "One served model", Model, "401", "404", "503", parameter="model")
        },
        "/v1/lora_adapters": {"get": _get("listLoraAdapters", "The adapters", LoraAdapterList, "401", "503")},
        "/v1/load_lora_adapter": {
            "post": _change(
                "loadLoraAdapter",
                "Load an adapter from the server's --lora-folder",
                LoadLoraRequest,
                LoraAdapter,
                *(*_CHANGE_ERRORS, "507"),
                example={"lora_name": "poet", "lora_path": "poet"},
            )
        },
        "/v1/unload_lora_adapter": {
            "post": _change(
                "unloadLoraAdapter",
                "Unload an adapter",
                UnloadLoraRequest,
                UnloadedLora,
                *_CHANGE_ERRORS,
                example={"lora_name": "poet"},
            )
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "summary": "What the server does, for Prometheus",
                "responses": {
                    "200": {
                        "description": "metrics in the text format",
                        "content": {"text/plain": {"schema": {"type": "string"}}},
                    }
                },
            }
        },
        "/health": {"get": _get("health", "Whether requests are taken now", Health, public=True)},
        "/": {"get": _get("index", "What this server is", Index, public=True)},
    }
    paths["/health"]["get"]["responses"]["503"] = {
        "description": "loading, warming up, stopping, or failed",
        "content": _content(Health),
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "mistral-jax",
            "version": version(),
            "description": "Mistral-family language models behind the OpenAI HTTP API.",
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


class DocsController(Controller):
    @get("/openapi.json", media_type="application/json", sync_to_thread=False)
    def openapi(self) -> Response[bytes]:
        """The OpenAPI document."""
        return Response(msgspec.json.encode(document()), media_type="application/json")

    @get("/docs", media_type="text/html", sync_to_thread=False)
    def docs(self) -> Response[bytes]:
        """The document as a page."""
        headers = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return Response(_page(), media_type="text/html", headers=headers)


@cache
def _page() -> bytes:
    return page(document()).encode()


_STYLE = """
:root { color-scheme: light dark }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
details { border: 1px solid #8886; border-radius: .5rem; margin: .5rem 0; padding: .5rem 1rem }
summary { cursor: pointer; font-weight: 600 }
summary b { display: inline-block; min-width: 4rem; text-transform: uppercase; color: #1a7f64 }
pre { background: #8882; border-radius: .3rem; padding: .75rem; overflow-x: auto }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .2rem .75rem .2rem 0 }
code { font-family: ui-monospace, monospace }
"""


def page(openapi: Mapping[str, Any]) -> str:
    """An OpenAPI document as one HTML page without scripts."""
    schemas = openapi["components"]["schemas"]
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>mistral-jax API</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{_STYLE}</style></head><body><h1>mistral-jax {_text(openapi['info']['version'])}</h1>",
        f'<p>{_text(openapi["info"]["description"])} The same as <a href="/openapi.json">OpenAPI document</a>.</p>',
    ]
    for path, operations in openapi["paths"].items():
        parts += [_operation(path, method, operation) for method, operation in operations.items()]
    parts.append("<h2>Schemas</h2>")
    parts += [_schema(name, schema) for name, schema in sorted(schemas.items())]
    return "".join(parts) + "</body></html>"


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> str:
    title = f"<b>{_text(method)}</b> <code>{_text(path)}</code> {_text(operation['summary'])}"
    parts = [f"<details open><summary>{title}</summary>"]
    if "requestBody" in operation:
        media = operation["requestBody"]["content"]["application/json"]
        parts.append(f"<p>Body: {_type(media['schema'])}</p>")
        command = _CURL.format(path=path, body=json.dumps(media["example"]))
        parts.append(f"<pre><code>{_text(command)}</code></pre>")
    parts.append("<table>")
    for status, response in operation["responses"].items():
        kinds = "<br>".join(f"{_type(media['schema'])} as {_text(name)}" for name, media in response["content"].items())
        parts.append(f"<tr><td>{_text(status)}</td><td>{_text(response['description'])}</td><td>{kinds}</td></tr>")
    return "".join(parts) + "</table></details>"


def _schema(name: str, schema: Mapping[str, Any]) -> str:
    required = set(schema.get("required", ()))
    rows = "".join(
        f"<tr><td><code>{_text(field)}</code>{' *' if field in required else ''}</td><td>{_type(inner)}</td>"
        f"<td>{_text(inner.get('description', ''))}</td></tr>"
        for field, inner in schema.get("properties", {}).items()
    )
    title, description = _text(name), _text(schema.get("description", ""))
    return f'<details id="{title}"><summary>{title}</summary><p>{description}</p><table>{rows}</table></details>'


def _type(schema: Mapping[str, Any]) -> str:
    """A schema's type in few words, with links to named ones."""
    if "$ref" in schema:
        name = _text(schema["$ref"].removeprefix(_REFERENCE))
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " or ".join(f"<code>{_text(json.dumps(value))}</code>" for value in schema["enum"] if value is not None)
    if schema.get("type") == "array":
        return f"list of ({_type(schema.get('items', {}))})"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return _text(schema.get("type", "anything"))


def _text(value: object) -> str:
    return html.escape(str(value))
