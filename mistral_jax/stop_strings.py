"""Finding stop strings in a text that arrives in pieces."""

from __future__ import annotations

from collections.abc import Sequence


class StopMatcher:
    """Ends a text before the first stop string in it, and releases the text before that as early as can be.

    Held back is only text that may yet turn out to be the beginning of a stop string: the longest tail of the text that
      is a beginning of one. The result does not depend on how the text is cut into pieces.

    *First* is the stop string that is complete first, so that no further token is ever generated to decide; of several
    that are complete at the same character, the longest. So with the stops "b" and "abc", "xabc" ends as "xa" (matched
    "b"), and with "c" and "abc" as "x" (matched "abc").
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """Prepares to look for any of `stops`, whose lengths are not limited.

        Raises:
          ValueError: a stop string is empty.
        """
        if "" in stops:
            raise ValueError("A stop string is empty: it would end every text at once. Leave it out.")
        # Longest first: of several matches at one character the first in this order wins.
        self._stops = sorted(set(stops), key=lambda stop: (-len(stop), stop))
        self._fallbacks = [_fallbacks(stop) for stop in self._stops]
        # Per stop string: how many of its characters the text so far ends with.
        self._states = [0] * len(self._stops)
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text; None as long as there is none."""
        return self._matched

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes the next piece of text.

        Returns:
          The text that is released, and the stop string that ended the text, or None.
          Once the text has ended, further pieces are dropped.
        """
        if self._matched is not None:
            return "", self._matched
        if not self._stops:
            return text, None
        for position, character in enumerate(text):
            stop = self._advance(character)
            if stop is not None:
                seen = self._held + text[: position + 1]
                self._held, self._matched = "", stop
                return seen[: -len(stop)], stop
        seen = self._held + text
        keep = max(self._states)
        self._held = seen[len(seen) - keep :]
        return seen[: len(seen) - keep], None

    def flush(self) -> str:
        """Releases what is held back, at the end of a text that no stop string ended."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._stops)
        return held

    def _advance(self, character: str) -> str | None:
        """Moves every stop string's state by one character; the longest one that is now complete, if any."""
        complete: str | None = None
        for i, stop in enumerate(self._stops):
            state = self._states[i]
            while state and stop[state] != character:
                state = self._fallbacks[i][state - 1]
            if stop[state] == character:
                state += 1
            self._states[i] = state
            if state == len(stop):
                complete = complete or stop
                self._states[i] = 0
        return complete


def _fallbacks(stop: str) -> list[int]:
    """For each prefix of `stop` the length of its longest proper border (Knuth, Morris and Pratt)."""
    borders = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = borders[length - 1]
        if stop[i] == stop[length]:
            length += 1
        borders[i] = length
    return borders
