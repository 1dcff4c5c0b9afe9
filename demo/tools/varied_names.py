"""Names that nobody has seen, so that a call or an object copies names and does not remember them."""

from __future__ import annotations

import random
from collections.abc import Iterable

_SHARE = 0.3
"""How often names are varied."""

_BEFORE = "my do run api the new user tool our get quick main"
_AFTER = "tool fn v2 api service now value x info data 1 2 item"
_STARTS = "ba be da de fa fi ga go ha ka ke la li lo ma mi mo na ne pa po ra re sa so ta ti to va vi wa zo"
_ENDS = "b d f g k l m n p r s t x bo da ga ka la ma na po ra sa ta"


def at_times_varied(rng: random.Random, names: Iterable[str]) -> list[str]:
    """The names, all varied or none."""
    is_varied = rng.random() < _SHARE
    return [_varied(rng, name) if is_varied else name for name in names]


def _varied(rng: random.Random, name: str) -> str:
    """The name with a word before or after it, or with a made-up one: `my_search`, `city_v2`, `goda_time`."""
    chance = rng.random()
    if chance < 0.35:
        return f"{rng.choice(_BEFORE.split())}_{name}"
    if chance < 0.7:
        return f"{name}_{rng.choice(_AFTER.split())}"
    made_up = rng.choice(_STARTS.split()) + rng.choice(_ENDS.split())
    return f"{made_up}_{name}" if rng.random() < 0.5 else f"{name}_{made_up}"
