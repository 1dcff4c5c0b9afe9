"""The OpenAPI document as a self-contained HTML page."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from typing import Any

from serving.api.description.openapi import REFERENCE

_CURL = """curl http://localhost:1234{path} -H 'Content-Type: application/json' \\
  -d '{body}'"""
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
    """Render an OpenAPI document as one HTML page without scripts."""
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
    """A short text for a schema's type, with links to named schemas."""
    if "$ref" in schema:
        name = _text(schema["$ref"].removeprefix(REFERENCE))
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in schema:
        return " or ".join(_type(option) for option in schema["anyOf"] if option.get("type") != "null")
    if "enum" in schema:
        return " or ".join(f"<code>{_text(json.dumps(value))}</code>" for value in schema["enum"] if value is not None)
    if "prefixItems" in schema:
        return f"[{', '.join(_type(item) for item in schema['prefixItems'])}]"
    if schema.get("type") == "array":
        return f"list of ({_type(schema.get('items', {}))})"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}"
    return _text(schema.get("type", "anything"))


def _text(value: object) -> str:
    return html.escape(str(value))
