"""The tree of a regular expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Ranges = tuple[tuple[int, int], ...]
"""Code points, as sorted ranges that include both ends and neither overlap nor touch."""


@dataclass(frozen=True, slots=True)
class Characters:
    """One character of a set.

    JavaScript and Python disagree about what `\\s`, `\\d` and `\\w` mean beyond ASCII. `inner` is what every dialect
    takes and `outer` what some dialect takes, so that a text that we write matches in all of them.
    """

    inner: Ranges
    outer: Ranges
    inner_items: tuple[str, ...] = ()
    """Parts of a class in Rust's syntax, such as `\\p{L}`, that belong to the set, too."""
    outer_items: tuple[str, ...] = ()
    negated: bool = False


@dataclass(frozen=True, slots=True)
class Anchor:
    """`^` or `$`."""

    side: Literal["start", "end"]


@dataclass(frozen=True, slots=True)
class Repeat:
    node: Node
    least: int
    most: int | None
    """None: any number."""


@dataclass(frozen=True, slots=True)
class Group:
    """Alternatives; each is a sequence."""

    alternatives: tuple[tuple[Node, ...], ...]
    flags: str = ""
    """`i` ignores case."""


type Node = Characters | Anchor | Repeat | Group
