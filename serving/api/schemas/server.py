"""The server itself: health, version, index, and cancelling requests."""

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


class Alive(Struct, kw_only=True):
    """The process runs; whether it takes requests is told by /health."""

    status: str


class Version(Struct, kw_only=True):
    """Response of GET /version."""

    version: str


class CancelledRequest(Struct, kw_only=True):
    """The request was cancelled; its own response is an error with the code `request_cancelled`."""

    id: str
    cancelled: Annotated[int, _doc("number of calls that were ended: several may have the same `X-Request-Id`")]


class Index(Struct, kw_only=True):
    """Response of GET /: name, version and paths of the endpoints."""

    name: str
    version: str
    links: dict[str, str]
