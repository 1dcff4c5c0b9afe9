"""Entries of tables of fields, for endpoints that share none with others, or only `shared_fields`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec

from serving.api.controllers.generation_fields import CHAT, fields_of
from serving.api.endpoint import Body, Field
from serving.api.schemas import SharedFields


def honoured(name: str, note: str) -> Field:
    """A field that does what it says."""
    return Field(name, "honoured", note)


def accepted(name: str, note: str) -> Field:
    """A field that is ignored, because it does not change the completion."""
    return Field(name, "accepted", note)


def refused(name: str, note: str, *neutral: Any, unless: Callable[[Body], bool] | None = None) -> Field:
    """A field that is refused.

    Args:
      neutral, unless: see `Field`.
    """
    return Field(name, "refused", note, neutral=neutral, unless=unless)


def shared_fields() -> tuple[Field, ...]:
    """The fields that all endpoints that generate text have."""
    shared = frozenset(SharedFields.__struct_fields__)
    return tuple(replace(field, endpoints=()) for field in fields_of(CHAT) if field.name in shared)


def value_of(body: Body, name: str) -> Any:
    """The value of a field of a body; None if it is absent."""
    return msgspec.json.decode(body[name]) if name in body else None
