"""The id of a request: the client's `X-Request-Id`, or a new one. Every response and every log line has it."""

from __future__ import annotations

import re
import uuid
from typing import cast

from litestar.types import Message, Scope

HEADER = b"x-request-id"
_SENT = (HEADER, b"request-id")
"""OpenAI's clients read the first, Anthropic's the second."""
_ACCEPTED = re.compile(rb"[\x21-\x7e]{1,128}")


def request_id_of(scope: Scope) -> str:
    """The request's id; the first call sets it."""
    state = scope.setdefault("state", {})
    if "request_id" not in state:
        given = next((value for name, value in scope["headers"] if name == HEADER), b"")
        state["request_id"] = given.decode("ascii") if _ACCEPTED.fullmatch(given) else uuid.uuid4().hex
    return cast("str", state["request_id"])


async def add_request_id(message: Message, scope: Scope) -> None:
    """A `before_send` hook: adds the id to every response, including errors and unknown paths."""
    if message["type"] == "http.response.start":
        value = request_id_of(scope).encode("ascii")
        message["headers"] = [*message.get("headers", ()), *((name, value) for name in _SENT)]
