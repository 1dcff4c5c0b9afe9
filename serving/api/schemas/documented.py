"""The description of a field, for the OpenAPI document."""

from __future__ import annotations

from msgspec import Meta


def documented(text: str) -> Meta:
    """The metadata of a field with this description."""
    return Meta(description=text)
