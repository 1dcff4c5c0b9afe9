"""Finding markers, and the end of a JSON object, in a text that arrives in pieces. Each character is looked at once."""

from __future__ import annotations

from collections.abc import Sequence

WHITESPACE = " \t\r\n"
"""What JSON takes for whitespace."""


class MarkerScanner:
    """Finds the first of several markers in a text, and holds back only what may begin one.

    The result does not depend on how the text is split. No marker may be a part of another.
    """

    def __init__(self, markers: Sequence[str]) -> None:
        """Prepares to look for any of these texts."""
        self._markers = tuple(markers)
        self._longest = max(map(len, self._markers), default=1) - 1
        self.held = ""
        """The end of the text so far, which may begin a marker."""

    def push(self, text: str) -> tuple[str, str | None, str]:
        """Takes the next piece.

        Returns:
          The text before a marker, the marker, and the text after it; without a marker, the text that is certainly not
          part of one, None, and "".
        """
        text = self.held + text
        self.held = ""
        found = [(at, marker) for marker in self._markers if (at := text.find(marker)) >= 0]
        if found:
            at, marker = min(found)
            return text[:at], marker, text[at + len(marker) :]
        for size in range(min(self._longest, len(text)), 0, -1):
            tail = text[-size:]
            if any(marker.startswith(tail) for marker in self._markers):
                self.held = tail
                return text[:-size], None, ""
        return text, None, ""

    def flush(self) -> str:
        """The text that is held back, at the end of the text."""
        held, self.held = self.held, ""
        return held


class ObjectScanner:
    """Finds the end of a JSON object.

    Only strings and brackets are looked at: what is between them is not checked.
    """

    def __init__(self) -> None:
        self._open: list[str] = []
        self._in_string = False
        self._escaped = False
        self.ended = False
        self.broken = False
        """Whether a bracket closes none or another one: then the object has no end."""

    def push(self, text: str, start: int = 0) -> int:
        """Takes the text from `start` on.

        Returns:
          Where the object ends, or `len(text)` if it goes on.
        """
        for position in range(start, len(text)):
            character = text[position]
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif character == "\\":
                    self._escaped = True
                elif character == '"':
                    self._in_string = False
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._open.append("}" if character == "{" else "]")
            elif character in "}]":
                if not self._open or self._open.pop() != character:
                    self.broken = True
                    return position
                if not self._open:
                    self.ended = True
                    return position + 1
        return len(text)
