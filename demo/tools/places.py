"""Names of places and things that a question mentions: known ones, and many that are made up, so that what a call has
to copy is copied and not remembered."""

from __future__ import annotations

import random

from demo import geography
from demo.skills.held_out import is_held_out

_CITIES = tuple(row[1] for row in geography.rows(geography.COUNTRIES))
_STARTS = (
    "Al Bal Ber Bra Cal Car Col Dal Dor El Fal Fer Gal Gor Hal Han Il Kar Kel Lan Lim Lor Mal Mar Mon Nor Ol Or Pal Per "
    "Ral Ros Sal San Ser Sten Tal Tor Ul Val Ver Wal Win Yor Zan"
)
_MIDDLES = "a e i o u an en in on ar er or el il am om ad ed ov is"
_ENDS = (
    "berg burg by dale den do dorf ford ga ham hill ia ka land lin ly ma mont more na nia no ra ro sk stad stein ta ton "
    "tou va ville wick wood za"
)


def place(rng: random.Random, *, held_out: bool) -> str:
    """A city, known or made up; the evaluation keeps some for itself."""
    while True:
        name = rng.choice(_CITIES) if rng.random() < 0.4 else _made_up(rng)
        if is_held_out("place", name) == held_out:
            return name


def _made_up(rng: random.Random) -> str:
    middle = rng.choice(_MIDDLES.split()) if rng.random() < 0.7 else ""
    name = rng.choice(_STARTS.split()) + middle + rng.choice(_ENDS.split())
    if rng.random() < 0.12:
        name = f"{rng.choice(('New', 'San', 'Port', 'North', 'Saint'))} {name}"
    return name
