"""Sets of characters, and what the escapes mean."""

from __future__ import annotations

from collections.abc import Iterable

from mistral_jax.grammar.patterns.tree import Characters, Ranges

MAX = 0x10FFFF

_SPACES_EVERYWHERE = (
    9,
    10,
    11,
    12,
    13,
    0x20,
    0xA0,
    0x1680,
    *range(0x2000, 0x200B),
    0x2028,
    0x2029,
    0x202F,
    0x205F,
    0x3000,
)
_SPACES_SOMEWHERE = (0x1C, 0x1D, 0x1E, 0x1F, 0x85, 0xFEFF)
"""Python's alone, but for the last, which is JavaScript's."""

_LINE_ENDS = (0x0A, 0x0D, 0x2028, 0x2029)

_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_WORD_ITEMS = (r"\p{L}", r"\p{M}", r"\p{N}", r"\p{Pc}")


def ranges_of(points: Iterable[int]) -> Ranges:
    """Single code points as ranges."""
    return union(tuple((point, point) for point in points))


def union(*parts: Ranges) -> Ranges:
    """All ranges together."""
    merged: list[list[int]] = []
    for low, high in sorted(pair for part in parts for pair in part):
        if merged and low <= merged[-1][1] + 1:
            merged[-1][1] = max(merged[-1][1], high)
        else:
            merged.append([low, high])
    return tuple((low, high) for low, high in merged)


def complement(ranges: Ranges) -> Ranges:
    """All other code points."""
    gaps, start = list[tuple[int, int]](), 0
    for low, high in ranges:
        if start < low:
            gaps.append((start, low - 1))
        start = high + 1
    return (*gaps, (start, MAX)) if start <= MAX else tuple(gaps)


def meet(a: Ranges, b: Ranges) -> bool:
    """Whether two sets have a character in common."""
    return any(low <= high_b and low_b <= high for low, high in a for low_b, high_b in b)


def single(point: int) -> Characters:
    """One character."""
    return Characters(((point, point),), ((point, point),))


ANY_BUT_LINE_ENDS = Characters(complement(ranges_of(_LINE_ENDS)), complement(ranges_of([0x0A])))
"""`.`: Python and Rust exclude only the line feed."""

ANY = Characters(((0, MAX),), ((0, MAX),))


def class_escape(letter: str) -> Characters:
    """What `\\d`, `\\w`, `\\s` and their opposites mean."""
    everywhere = ranges_of(_SPACES_EVERYWHERE)
    spaces = union(everywhere, ranges_of(_SPACES_SOMEWHERE))
    match letter:
        case "d":
            return Characters(_DIGIT, _DIGIT, outer_items=(r"\p{Nd}",))
        case "D":
            return Characters((), complement(_DIGIT), inner_items=(r"\P{Nd}",))
        case "w":
            return Characters(_WORD, _WORD, outer_items=_WORD_ITEMS)
        case "W":
            return Characters((), complement(_WORD), inner_items=(f"[^{''.join(_WORD_ITEMS)}]",))
        case "s":
            return Characters(everywhere, spaces)
        case _:
            return Characters(complement(spaces), complement(everywhere))
