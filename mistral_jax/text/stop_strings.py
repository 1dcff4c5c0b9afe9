"""Finding stop strings in a text that arrives in pieces."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence


class StopMatcher:
    """Ends a text before the first stop string in it, and releases the text before that as early as possible.

    Only text that may be the beginning of a stop string is held back: the longest suffix of the text that is a prefix
    of one. The result does not depend on how the text is split into pieces.

    *First* is the stop string that is complete first, so that no further token is needed to decide; of several that are
    complete at the same character, the longest. So with the stops "b" and "abc", "xabc" ends as "xa" (matched "b"), and
    with "c" and "abc" as "x" (matched "abc").
    """

    def __init__(self, stops: Sequence[str], *, keep: bool = False) -> None:
        """Prepares to look for any of `stops`, whose lengths are not limited.

        Args:
          stops: the stop strings.
          keep: whether the text ends after the stop string, not before it; then nothing is held back.

        Raises:
          ValueError: a stop string is empty.
        """
        self._keep = keep
        if "" in stops:
            raise ValueError("A stop string is empty: it would end every text at once. Leave it out.")
        self._automaton = _automaton(tuple(sorted(set(stops)))) if stops else None
        # The longest suffix of the text so far that is a prefix of a stop string, as a state of the automaton.
        self._state = 0
        self._held = ""
        self._matched: str | None = None

    @property
    def matched(self) -> str | None:
        """The stop string that ended the text; None as long as there is none."""
        return self._matched

    def push(self, text: str, *, ends: bool = True) -> tuple[str, str | None]:
        """Takes the next piece of text.

        Args:
          text: the piece.
          ends: whether a stop string that this piece completes ends the text.

        Returns:
          The released text, and the stop string that ended the text, or None. Once the text has ended, further pieces
          are dropped.
        """
        if self._matched is not None:
            return "", self._matched
        if self._automaton is None:
            return text, None
        for position, character in enumerate(text):
            self._state = self._automaton.next(self._state, character)
            stop = self._automaton.complete[self._state]
            if stop is not None and ends:
                seen = self._held + text[: position + 1]
                self._held, self._matched = "", stop
                return seen if self._keep else seen[: -len(stop)], stop
        seen = self._held + text
        held = 0 if self._keep else self._automaton.depth[self._state]
        self._held = seen[len(seen) - held :]
        return seen[: len(seen) - held], None

    def flush(self) -> str:
        """Releases the held-back text, at the end of a text that no stop string ended."""
        held, self._held = self._held, ""
        self._state = 0
        return held


class _Automaton:
    """All stop strings at once (Aho and Corasick, 1975), so that the cost of a character does not depend on their
    number.

    A state is a prefix of one or several of them; state 0 is the empty one.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.depth = [0]
        """Length of each state's text."""
        self.complete: list[str | None] = [None]
        """The longest stop string that each state's text ends with."""
        self._children: list[dict[str, int]] = [{}]
        # The longest proper suffix of each state's text that is a state, too.
        self._fallback = [0]
        for stop in stops:
            self._add(stop)
        queue = deque(self._children[0].values())
        while queue:  # shorter ones before longer ones, whose fallbacks they are
            state = queue.popleft()
            for character, child in self._children[state].items():
                self._fallback[child] = self.next(self._fallback[state], character)
                queue.append(child)
            if self.complete[state] is None:
                self.complete[state] = self.complete[self._fallback[state]]

    def _add(self, stop: str) -> None:
        state = 0
        for character in stop:
            child = self._children[state].get(character)
            if child is None:
                child = self._children[state][character] = len(self.depth)
                self.depth.append(self.depth[state] + 1)
                self.complete.append(None)
                self._children.append({})
                self._fallback.append(0)
            state = child
        self.complete[state] = stop

    def next(self, state: int, character: str) -> int:
        """The state after one more character."""
        while state and character not in self._children[state]:
            state = self._fallback[state]
        return self._children[state].get(character, 0)


@functools.lru_cache(maxsize=4)
def _automaton(stops: tuple[str, ...]) -> _Automaton:
    """The choices of one request share it."""
    return _Automaton(stops)
