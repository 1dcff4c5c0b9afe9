"""How the events of a stream are written: server-sent events, with and without names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

Payload = msgspec.Struct | list[Any] | dict[str, Any]
"""What becomes JSON."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wire:
    """One API's way of writing its streams."""

    named: bool = False
    """Whether events have names: the tags of their Structs, which also are their `type`."""
    end: bytes = b"data: [DONE]\n\n"
    """What a stream ends with."""
    keep_alive: bytes = b": keep-alive\n\n"
    """Sent while there are no events."""

    def event(self, payload: Payload) -> bytes:
        """One event."""
        data = b"data: " + msgspec.json.encode(payload) + b"\n\n"
        if not self.named or not isinstance(payload, msgspec.Struct):
            return data
        return f"event: {payload.__struct_config__.tag}\n".encode() + data


CHUNKS = Wire()
"""OpenAI's chunks of completions."""
LLAMA_CHUNKS = Wire(end=b"")
"""llama.cpp's parts of completions."""
NAMED_EVENTS = Wire(named=True, end=b"")
"""OpenAI's events of responses."""
