"""Natural order of names: adapter_2 before adapter_10."""

from __future__ import annotations

import re
from collections.abc import Iterable

_NUMBER = re.compile(r"([0-9]+)")


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort strings with the numbers in them by value, the rest by character."""
    return sorted(names, key=_natural)


def _natural(name: str) -> tuple[list[tuple[str, int, str]], str]:
    """Texts between numbers, each with the number that follows: by length and digits, since it may be longer than an
    int can be."""
    pieces = _NUMBER.split(name)
    numbers = [digits.lstrip("0") for digits in pieces[1::2]]
    return [(text, len(number), number) for text, number in zip(pieces[0::2], [*numbers, ""], strict=True)], name
