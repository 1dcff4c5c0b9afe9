"""Conversion of whole numbers between units whose ratio is a whole number.

What is held out is a number with both its units, where digits are only to be put behind it or taken away:
`3 litres in millilitres` may be kept for the evaluation. Hours in minutes and the like are learnt by heart; of these, a
number in one template is held out, and trained on in others.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from demo.skills.held_out import choose, draw


@dataclass(frozen=True)
class Ratio:
    """One of the large unit is `factor` of the small one; asked for up to `largest` of the large one."""

    large: str
    small: str
    factor: int
    largest: int


RATIOS = (
    Ratio("kilometres", "metres", 1000, 50),
    Ratio("kilograms", "grams", 1000, 50),
    Ratio("litres", "millilitres", 1000, 50),
    Ratio("metres", "centimetres", 100, 50),
    Ratio("euros", "cents", 100, 50),
    Ratio("centimetres", "millimetres", 10, 50),
    Ratio("hours", "minutes", 60, 10),
    Ratio("minutes", "seconds", 60, 10),
    Ratio("weeks", "days", 7, 10),
    Ratio("years", "months", 12, 10),
    Ratio("feet", "inches", 12, 10),
    Ratio("days", "hours", 24, 5),
)
SHORT = {
    "kilometres": "km",
    "metres": "m",
    "centimetres": "cm",
    "millimetres": "mm",
    "kilograms": "kg",
    "grams": "g",
    "litres": "l",
    "millilitres": "ml",
}
CAN = "Yes, I convert metric units, hours, days, weeks, years, feet and euros."
TOO_HARD = "That is too hard for me. I convert metric units, hours, days, weeks, years, feet and euros."

_TEMPLATES = [
    "Convert {n} {a} to {b}.",
    "Convert {n} {a} into {b}.",
    "How many {b} are {n} {a}?",
    "How many {b} are in {n} {a}?",
    "What is {n} {a} in {b}?",
    "{n} {a} in {b}",
    "{n} {a} to {b}",
    "How much is {n} {a} in {b}?",
    "Turn {n} {a} into {b}.",
    "I have {n} {a}. How many {b} is that?",
    "{n} {a} are how many {b}?",
    "Change {n} {a} to {b}.",
    "~Express {n} {a} in {b}.",
    "~What are {n} {a} in {b}?",
    "~Please give me {n} {a} as {b}.",
]
_UNKNOWN_PAIRS = [
    ("kilometres", "miles"),
    ("miles", "kilometres"),
    ("feet", "metres"),
    ("metres", "yards"),
    ("kilograms", "pounds"),
    ("pounds", "kilograms"),
    ("grams", "ounces"),
    ("litres", "gallons"),
    ("degrees Celsius", "Fahrenheit"),
    ("euros", "dollars"),
    ("dollars", "yen"),
    ("knots", "kilometres"),
    ("acres", "hectares"),
    ("cups", "millilitres"),
]
_CAN_YOU = ["Can you convert units?", "Can you convert hours to minutes?", "Do you know units?"]


def answer(number: int, start: str, end: str) -> str:
    for ratio in RATIOS:
        if (ratio.large, ratio.small) == (start, end):
            return _sentence(number, start, number * ratio.factor, end)
        if (ratio.small, ratio.large) == (start, end) and number % ratio.factor == 0:
            return _sentence(number, start, number // ratio.factor, end)
    raise ValueError(f"{number} {start} cannot be converted to whole {end}")


def question(rng: random.Random, *, held_out: bool, new_template: bool = False) -> tuple[str, str]:
    """A question and its answer; the arguments are those of `arithmetic.question`."""

    def values() -> tuple[Ratio, int, str, str, str]:
        return (*_values(rng), choose(rng, _TEMPLATES, new=new_template))

    _, number, start, end, template = draw(values, held_out=held_out, key=_key)
    a, b = start, end
    if start in SHORT and end in SHORT and rng.random() < 0.4:
        a, b = SHORT[start], SHORT[end]
    return template.format(n=number, a=_named(number, a), b=b), answer(number, start, end)


def out_of_reach(rng: random.Random) -> tuple[str, str]:
    """A question that the skill does not cover, or about the skill itself, and what to say to it."""
    if rng.random() < 0.2:
        return rng.choice(_CAN_YOU), CAN
    a, b = rng.choice(_UNKNOWN_PAIRS)
    return choose(rng, _TEMPLATES, new=False).format(n=rng.randrange(2, 100), a=a, b=b), TOO_HARD


def _values(rng: random.Random) -> tuple[Ratio, int, str, str]:
    ratio = rng.choice(RATIOS)
    number = rng.randrange(1, ratio.largest + 1)
    if ratio.largest > 10 and rng.random() < 0.3:
        # Else 1 and the round numbers, whose zeros are not those of the ratio, would be too rare to be learnt.
        number = rng.choice([*range(1, 10), *range(10, ratio.largest + 1, 10)])
    if rng.random() < 0.4:
        return ratio, number * ratio.factor, ratio.small, ratio.large
    return ratio, number, ratio.large, ratio.small


def _key(ratio: Ratio, number: int, start: str, end: str, template: str) -> tuple[object, ...]:
    return (number, start, end) if ratio.factor in (10, 100, 1000) else (number, start, end, template)


def _named(number: int, unit: str) -> str:
    if number != 1 or unit in SHORT.values():
        return unit
    return "foot" if unit == "feet" else unit.removesuffix("s")


def _sentence(number: int, start: str, result: int, end: str) -> str:
    verb = "is" if number == 1 else "are"
    return f"{number} {_named(number, start)} {verb} {result} {_named(result, end)}."
