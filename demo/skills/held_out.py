"""What of a skill is never trained on, so that the evaluation asks what can only be worked out.

What is held out are *values*: two summands, a word and what to do with it, a number and its units, the words of a
  sentence.
A hash decides, so a value is held out in every template and from every seed. Whole templates are held out too: those
that begin with `~`, as in the rest of the demo's corpus.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from typing import Any

from demo.lesson import HELD_OUT_MARK

SHARE = 0.12
"""Share of the values that the evaluation keeps."""


def is_held_out(*values: object) -> bool:
    """Whether the evaluation keeps these values."""
    digest = hashlib.sha256("\0".join(map(str, values)).encode()).digest()
    return int.from_bytes(digest[:4], "big") < SHARE * 2**32


def draw(
    make: Callable[[], tuple[Any, ...]], *, held_out: bool, key: Callable[..., tuple[Any, ...]]
) -> tuple[Any, ...]:
    """The first of the values from `make` whose `key` is held out, or is not."""
    while True:
        values = make()
        if is_held_out(*key(*values)) == held_out:
            return values


def choose(rng: random.Random, templates: Sequence[str], *, new: bool) -> str:
    """One of the templates that are trained on or, for `new`, one of those that are not."""
    template = rng.choice([t for t in templates if t.startswith(HELD_OUT_MARK) == new])
    return template.removeprefix(HELD_OUT_MARK)
