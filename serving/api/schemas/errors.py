"""Error responses."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class ErrorBody(Struct, kw_only=True):
    message: str
    type: str
    param: str | None
    code: str | None
    n_prompt_tokens: int | UnsetType = UNSET
    n_ctx: int | UnsetType = UNSET


class ErrorResponse(Struct, kw_only=True):
    """Body of every error response."""

    error: ErrorBody
