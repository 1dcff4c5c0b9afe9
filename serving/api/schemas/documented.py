"""Descriptions of fields and shapes, for the OpenAPI document."""

from __future__ import annotations

from msgspec import Meta


def documented(text: str) -> Meta:
    """The metadata of a field with this description."""
    return Meta(description=text)


IF_FIELD = "x-if-field"
"""Keyword of a response's schema: the field of the request without which no response has this shape."""


def if_field(name: str, text: str) -> Meta:
    """The metadata of a response's shape that only requests with this field get."""
    return Meta(description=text, extra_json_schema={IF_FIELD: name})
