"""The server itself: health and index."""

from __future__ import annotations

from typing import Annotated

from msgspec import UNSET, Struct, UnsetType

from serving.api.schemas.documented import documented as _doc
from serving.api.schemas.errors import ErrorBody


class Health(Struct, kw_only=True):
    """`ok` with status 200; anything else with status 503."""

    status: str
    detail: str | UnsetType = UNSET
    progress: Annotated[float | UnsetType, _doc("0 to 1 within the current state")] = UNSET
    running: int | UnsetType = UNSET
    waiting: int | UnsetType = UNSET
    error: ErrorBody | UnsetType = UNSET


class Index(Struct, kw_only=True):
    """Response of GET /: name, version and paths of the endpoints."""

    name: str
    version: str
    links: dict[str, str]
