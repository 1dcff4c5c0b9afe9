"""When things happened to a sequence, by the monotonic clock."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from serving.engine.messages import Times


@dataclass(slots=True)
class SequenceClock:
    """Filled in by the engine's thread; others may read it."""

    queued: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first_token: float | None = None
    tokens: int = 0
    """Tokens that have been read."""

    def admit(self) -> None:
        """The sequence got a slot."""
        self.admitted = time.monotonic()

    def token(self, now: float) -> None:
        """A token of the sequence was read."""
        self.tokens += 1
        if self.first_token is None:
            self.first_token = now

    def times(self, now: float) -> Times:
        """The times of an event that is made now."""
        return Times(self.queued, self.queued if self.admitted is None else self.admitted, self.first_token, now)
