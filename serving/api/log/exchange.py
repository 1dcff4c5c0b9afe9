"""The record of one request and its response, for the log and for cleanup at the end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from litestar.types import Scope

from serving.api.schemas import Usage


@dataclass(slots=True)
class Exchange:
    """One request and its response; each part is filled in by the code that has it."""

    is_wanted: bool = False
    """Whether the log file needs the body. It is not kept otherwise."""
    request: bytes | None = None
    """The raw body, until it is passed to the file."""
    response: Any = None
    """The response as a Struct; for a stream, a function that assembles it, called only if the file needs it."""
    usage: Usage | None = None
    error: str | None = None
    """A server-side error, before or after the start of the response."""
    status: int | None = None
    started: float = field(default_factory=time.monotonic)
    at_end: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    """Called once the response has been sent, or has failed."""


def exchange_of(scope: Scope) -> Exchange:
    """The record of this request; the first call creates it."""
    state = scope.setdefault("state", {})
    if "exchange" not in state:
        state["exchange"] = Exchange()
    return cast("Exchange", state["exchange"])
