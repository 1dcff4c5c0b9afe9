"""What is known of one request and its response: for the log, and for what has to end with them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from litestar.types import Scope

from serving.api.schemas import Usage


@dataclass(slots=True)
class Exchange:
    """One request and its response, filled in by whoever knows the parts."""

    is_wanted: bool = False
    """Whether the file is to get the body. Nothing else keeps it."""
    request: bytes | None = None
    """The body as it came, until the file has it."""
    response: Any = None
    """The response as a Struct; of a stream, what assembles the answer, which is not done unless the file wants it."""
    usage: Usage | None = None
    error: str | None = None
    """What went wrong on our side, before the response had begun or after."""
    status: int | None = None
    started: float = field(default_factory=time.monotonic)
    at_end: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    """Called once the response is sent, or cannot be."""


def exchange_of(scope: Scope) -> Exchange:
    """The record of this request; the first call makes it."""
    state = scope.setdefault("state", {})
    if "exchange" not in state:
        state["exchange"] = Exchange()
    return cast("Exchange", state["exchange"])
