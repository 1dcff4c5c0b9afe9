"""Regular expressions in adapters' configurations, matched in time linear in a name's length.

They come with the weights and are not trusted. Python's own engine backtracks, which takes exponential time for
`([a-z0-9_.]+)+!` and holds the interpreter. RE2 matches in linear time: what it cannot match so (look-around, back
references, atomic groups) it does not accept, and neither do we.

Matching follows PEFT: a pattern of ranks or alphas has to match the end of a module's name, from the beginning or after
a dot; one of modules has to match the whole name. The names are ASCII and have no line breaks, so that the two engines
agree on all patterns that both accept, except for the few forms that `_DIFFERENT` refuses.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import re2

MAX_PATTERNS = 4096
"""In one field. Tools that write a rank for each module have seven for a layer."""
MAX_LENGTH = 16_384
"""Characters of a pattern."""
MAX_PROGRAM = 131_072
"""Instructions of all compiled patterns of a field. Matching all of them takes, at worst, this times the name's
length."""

_MEMORY = 2**17
"""Bytes that a compiled pattern may take, its table of states included; where that is full, RE2 continues without
it."""
_LITERAL = re.compile(r"[A-Za-z0-9_.\-]+", re.ASCII)
_SUFFIX = r"(?:.*\.)?(?:{})"

_DIFFERENT = {
    r"{,": "a repetition without a lower bound",
    r"[:": "a named class of characters",
    r"\C": "an escape that Python does not know",
    r"\Q": "an escape that Python does not know",
    r"\p": "an escape that Python does not know",
    r"\P": "an escape that Python does not know",
    r"(?U": "a flag that Python does not know",
}
"""Forms that RE2 interprets differently from Python."""
_REFUSED = {
    "(?=": "a look-ahead",
    "(?!": "a look-ahead",
    "(?<=": "a look-behind",
    "(?<!": "a look-behind",
    "(?P=": "a back reference",
    "(?>": "an atomic group",
    "(?(": "a condition",
    "(?#": "a comment",
}
_BACK_REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*\\[0-9]")


class PatternError(ValueError):
    """A pattern is broken, or cannot be matched in linear time; or there are too many."""


class NamePattern:
    """One pattern, which has to match a whole name."""

    def __init__(self, pattern: str) -> None:
        """Compiles a pattern.

        Raises:
          PatternError: it is not a regular expression, or not of a kind that is matched here.
        """
        self._compiled = _compile(pattern)

    def matches(self, name: str) -> bool:
        return self._compiled.fullmatch(name) is not None


class PatternTable[T]:
    """Values by patterns; a name has the value of the first pattern that it ends in a match of.

    Patterns without special characters are looked up; the others are matched one after another, once for each name.
    """

    def __init__(self, values: Mapping[str, T]) -> None:
        """Compiles the patterns.

        Raises:
          PatternError: one of them is not a regular expression, or not of a kind that is matched here; or there are too
            many.
        """
        if len(values) > MAX_PATTERNS:
            raise PatternError(f"{len(values):,} patterns; expected at most {MAX_PATTERNS:,}")
        self._values = list(values.values())
        self._literals: dict[str, int] = {}
        self._dots: dict[int, set[tuple[int, ...]]] = {}
        self._compiled: list[tuple[int, Any]] = []
        self._found: dict[str, int | None] = {}
        size = 0
        for index, pattern in enumerate(values):
            if _LITERAL.fullmatch(pattern) and len(pattern) <= MAX_LENGTH:
                self._literals.setdefault(pattern, index)
                places = tuple(i for i, letter in enumerate(pattern) if letter == ".")
                self._dots.setdefault(len(pattern), set()).add(places)
                continue
            _compile(pattern)  # by itself first: `a)|(b` is none, but would become one between parentheses
            compiled = _compile(_SUFFIX.format(pattern))
            size += _size(compiled)
            if size > MAX_PROGRAM:
                raise PatternError("patterns that are too large together; list modules by name instead")
            self._compiled.append((index, compiled))

    def get(self, name: str, default: T) -> T:
        """The value of the first pattern that matches."""
        if name not in self._found:
            self._found[name] = self._first(name)
        index = self._found[name]
        return default if index is None else self._values[index]

    def _first(self, name: str) -> int | None:
        literal = self._first_literal(name)
        for index, compiled in self._compiled:
            if literal is not None and index > literal:
                break
            if compiled.fullmatch(name) is not None:
                return index
        return literal

    def _first_literal(self, name: str) -> int | None:
        found: list[int] = []
        for suffix in suffixes(name):
            # A dot in a pattern stands for any character; patterns of one length mostly have their dots in the same
            # places.
            for places in self._dots.get(len(suffix), ()):
                letters = list(suffix)
                for i in places:
                    letters[i] = "."
                if (index := self._literals.get("".join(letters))) is not None:
                    found.append(index)
        return min(found, default=None)


def suffixes(name: str) -> list[str]:
    """The name, and what follows each of its dots."""
    parts = name.split(".")
    return [".".join(parts[i:]) for i in range(len(parts))]


def _compile(pattern: str) -> Any:
    if len(pattern) > MAX_LENGTH:
        raise PatternError(f"a pattern of {len(pattern):,} characters; expected at most {MAX_LENGTH:,}")
    for form, what in _DIFFERENT.items():
        if form in pattern:
            raise PatternError(f"{_shown(pattern)}, which has {what} ({form}); write it in another way")
    options = re2.Options()
    options.max_mem = _MEMORY
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except re2.error as error:
        refused = next((f"{what} ({form})" for form, what in _REFUSED.items() if form in pattern), None)
        if refused is None and _BACK_REFERENCE.search(pattern):
            refused = "a back reference"
        if refused is not None:
            raise PatternError(
                f"{_shown(pattern)}, which has {refused}: such patterns can take any amount of time and are not "
                "matched here; list the modules by name instead"
            ) from error
        reason = cast("bytes", error.args[0]).decode(errors="replace") if error.args else ""
        raise PatternError(f"{_shown(pattern)}, which is no regular expression: {reason}") from error


def _size(compiled: Any) -> int:
    return int(compiled.programsize)


def _shown(pattern: str) -> str:
    return repr(pattern if len(pattern) <= 80 else pattern[:79] + "…")
