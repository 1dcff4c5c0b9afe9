"""The sequences that wait for a slot, and whose turn it is. Pure Python.

Callers share the slots: the next one is that with the fewest sequences in slots; of equals, the one whose last turn was
longest ago. So a caller with a thousand requests does not delay the first request of another by more than it takes
until a slot is free. `priority` orders the requests of one caller only: callers do not trust each other.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from serving.engine.messages import Request

MOST_OVERTAKEN = 3
"""Times in a row that the longest-waiting sequence of a caller is overtaken by ones of lower `priority` numbers."""


class Sequenced(Protocol):
    """What waits."""

    @property
    def request(self) -> Request: ...


@dataclass(slots=True)
class _Line[S: Sequenced]:
    """The sequences of one caller, in order of arrival."""

    sequences: deque[S] = field(default_factory=deque[S])
    overtaken: int = 0
    """Times in a row that the first one was overtaken."""

    def take(self) -> S:
        place = 0
        if self.overtaken < MOST_OVERTAKEN:
            place, _ = min(enumerate(self.sequences), key=lambda item: (item[1].request.priority, item[0]))
        self.overtaken = self.overtaken + 1 if place else 0
        sequence = self.sequences[place]
        del self.sequences[place]
        return sequence


class Waiting[S: Sequenced]:
    """The queue."""

    def __init__(self) -> None:
        self._lines: dict[int, _Line[S]] = {}
        """By caller: those that have waiting sequences, the one whose turn was longest ago first."""

    def __len__(self) -> int:
        return sum(len(line.sequences) for line in self._lines.values())

    def __iter__(self) -> Iterator[S]:
        for line in self._lines.values():
            yield from line.sequences

    def of(self, caller: int) -> int:
        """The number of sequences of a caller."""
        return len(self._lines[caller].sequences) if caller in self._lines else 0

    def add(self, sequences: Sequence[S]) -> None:
        for sequence in sequences:
            self._lines.setdefault(sequence.request.caller, _Line()).sequences.append(sequence)

    def take(self, running: Counter[int]) -> S:
        """Remove and return the next sequence; there must be one.

        Args:
          running: number of sequences in slots, by caller.
        """
        caller = min(self._lines, key=running.__getitem__)
        line = self._lines.pop(caller)
        sequence = line.take()
        if line.sequences:
            self._lines[caller] = line
        return sequence

    def remove(self, sequence: S) -> None:
        """Remove a sequence that waits."""
        line = self._lines[sequence.request.caller]
        line.sequences.remove(sequence)
        if not line.sequences:
            del self._lines[sequence.request.caller]
