"""Questions that a tool answers: what is asked, the call, what the tool may return, and what the model says then.

Values are held out as in `demo.skills`, by a hash: an expression, a number with its units, a place, a query.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from demo import words
from demo.held_out import all_lessons
from demo.lesson import Lesson
from demo.skills.held_out import choose, draw
from demo.tools.functions import CALCULATOR, CLOCK, CONVERTER, SEARCH, WEATHER
from demo.tools.places import place

Arguments = Mapping[str, Any]
"""By role, see `demo.tools.functions`."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A question for one tool."""

    purpose: str
    question: str
    calls: tuple[Arguments, ...]
    results: tuple[str, ...]
    """What the tool returns, for each call."""
    answer: str


_SUMS = (
    "What is {x}?",
    "What is {x}?",
    "{x}",
    "{x} = ?",
    "Calculate {x}.",
    "Compute {x}.",
    "How much is {x}?",
    "Tell me what {x} is.",
    "Work out {x}.",
    "I need to know {x}.",
    "Please calculate {x}.",
    "~Can you work out {x} for me?",
    "~Do you know what {x} is?",
    "~What does {x} make?",
)
_SAID = {
    "+": ("+", "+", "plus"),
    "-": ("-", "-", "minus"),
    "*": ("*", "x", "times", "multiplied by"),
    "/": ("/", "divided by"),
}
_CONVERSIONS = (
    "Convert {n} {a} to {b}.",
    "Convert {n} {a} into {b}.",
    "How many {b} are {n} {a}?",
    "How many {b} are in {n} {a}?",
    "What is {n} {a} in {b}?",
    "What are {n} {a} in {b}?",
    "{n} {a} in {b}",
    "{n} {a} to {b}",
    "How much is {n} {a} in {b}?",
    "Turn {n} {a} into {b}.",
    "~Express {n} {a} in {b}.",
    "~Please give me {n} {a} as {b}.",
    "~I have {n} {a}. How many {b} is that?",
)
_UNITS = (
    {"kilometres": 1000.0, "metres": 1.0, "centimetres": 0.01, "millimetres": 0.001, "miles": 1609.344, "feet": 0.3048,
     "inches": 0.0254, "yards": 0.9144, "km": 1000.0, "m": 1.0, "cm": 0.01, "mm": 0.001},
    {"kilograms": 1.0, "grams": 0.001, "pounds": 0.45359237, "ounces": 0.028349523125, "tons": 1000.0, "kg": 1.0,
     "g": 0.001, "lb": 0.45359237},
    {"litres": 1.0, "millilitres": 0.001, "gallons": 3.785411784, "cups": 0.2365882365, "pints": 0.473176473, "l": 1.0,
     "ml": 0.001},
    {"seconds": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0, "weeks": 604800.0},
)  # fmt: skip
_TEMPERATURES = ("Celsius", "Fahrenheit", "Kelvin")
_WEATHER = (
    "What is the weather in {p}?",
    "What's the weather like in {p}?",
    "How is the weather in {p}?",
    "What is the weather in {p} today?",
    "Is it raining in {p}?",
    "How warm is it in {p}?",
    "Is it cold in {p}?",
    "Weather in {p}",
    "Tell me the weather in {p}.",
    "Do I need an umbrella in {p}?",
    "~Is it sunny in {p}?",
    "~What will the weather be in {p}?",
    "~How hot is it in {p} now?",
)
_TIME = (
    "What time is it in {p}?",
    "What is the time in {p}?",
    "Tell me the time in {p}.",
    "How late is it in {p}?",
    "What's the time in {p} now?",
    "Time in {p}",
    "~Do you know what time it is in {p}?",
    "~Which time is it in {p}?",
)
_SEARCHES = (
    "Search for {q}.",
    "Look up {q}.",
    "Find something about {q}.",
    "Search the web for {q}.",
    "Please search for {q}.",
    "Can you look up {q}?",
    "What does the web say about {q}?",
    "~Find out about {q}.",
    "~Do a search for {q}.",
)
_SKIES = (
    "sunny", "cloudy", "rainy", "windy", "snowy", "foggy", "stormy", "clear", "partly cloudy", "light rain", "hot",
    "freezing", "thunder", "overcast",
)  # fmt: skip
_ERRORS = ("not found", "service unavailable", "timeout", "unknown input", "no connection", "try again later")


def task(rng: random.Random, purpose: str, *, held_out: bool, new_template: bool = False) -> Task:
    """A question with all that follows.

    Args:
      purpose: Of the tool that it needs.
      held_out: Ask with values that are never trained on, or only with others.
      new_template: Ask in words that are never trained on.
    """
    made = _MAKERS[purpose](rng, held_out, new_template)
    if held_out or rng.random() >= 0.04:
        return made
    error = rng.choice(_ERRORS)
    result = rng.choice((json.dumps({"error": error}), f"Error: {error}"))
    return Task(
        purpose=purpose,
        question=made.question,
        calls=made.calls,
        results=(result,) * len(made.calls),
        answer=f"The tool failed: {error}.",
    )


def _calculation(rng: random.Random, held_out: bool, new_template: bool) -> Task:
    numbers, signs = draw(
        lambda: _expression(rng), held_out=held_out, key=lambda numbers, signs: ("expression", *numbers, *signs)
    )
    spaces = rng.random() < 0.85
    said, written = numbers[0], numbers[0]
    for sign, number in zip(signs, numbers[1:], strict=True):
        word = rng.choice(_SAID[sign])
        said += f" {word} {number}" if spaces or word.isalpha() or " " in word else f"{word}{number}"
        written += f" {sign} {number}"
    result = _figure(eval(written, {"__builtins__": {}}))
    return Task(
        purpose=CALCULATOR,
        question=choose(rng, _SUMS, new=new_template).format(x=said),
        calls=({"expression": written},),
        results=(_returned(rng, result, ("result", "value", "answer")),),
        answer=f"{written} = {result}.",
    )


def _expression(rng: random.Random) -> tuple[tuple[str, ...], tuple[str, ...]]:
    count = 3 if rng.random() < 0.2 else 2
    signs = tuple(rng.choices("+-*/", (3, 3, 3, 2))[0] for _ in range(count - 1))
    return tuple(_number(rng) for _ in range(count)), signs


def _number(rng: random.Random) -> str:
    digits = rng.choices((1, 2, 3, 4), (2, 4, 3, 1))[0]
    number = str(rng.randrange(10 ** (digits - 1), 10**digits))
    return f"{number}.{rng.randrange(1, 10)}" if rng.random() < 0.1 else number


def _figure(value: float) -> str:
    """As a tool writes it: up to six digits, no exponent."""
    text = f"{value:.6f}" if abs(value) < 1 else f"{value:.{max(0, 6 - len(str(int(abs(value)))))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _conversion(rng: random.Random, held_out: bool, new_template: bool) -> Task:
    def values() -> tuple[str, str, str]:
        units = rng.choice((*_UNITS, _TEMPERATURES))
        start, end = rng.sample(list(units), 2)
        return _number(rng), start, end

    number, start, end = draw(values, held_out=held_out, key=lambda *values: ("units", *values))
    result = _figure(_converted(float(number), start, end))
    form = rng.random()
    if form < 0.25:
        returned = f"{result} {end}"
    elif form < 0.5:
        returned = json.dumps({"value": json.loads(result), "unit": end})
    else:
        returned = _returned(rng, result, ("result", "value", "converted"))
    return Task(
        purpose=CONVERTER,
        question=choose(rng, _CONVERSIONS, new=new_template).format(n=number, a=start, b=end),
        calls=({"value": json.loads(number), "start": start, "end": end},),
        results=(returned,),
        answer=f"{number} {start} = {result} {end}.",
    )


def _converted(number: float, start: str, end: str) -> float:
    if start in _TEMPERATURES:
        celsius = {"Celsius": number, "Fahrenheit": (number - 32) / 1.8, "Kelvin": number - 273.15}[start]
        return {"Celsius": celsius, "Fahrenheit": celsius * 1.8 + 32, "Kelvin": celsius + 273.15}[end]
    units = next(units for units in _UNITS if start in units)
    return number * units[start] / units[end]


def _weather(rng: random.Random, held_out: bool, new_template: bool) -> Task:
    places = [place(rng, held_out=held_out) for _ in range(2 if rng.random() < 0.15 else 1)]
    results, answers = [], []
    for where in places:
        degrees, sky = rng.randrange(-15, 42), rng.choice(_SKIES)
        if rng.random() < 0.35:
            text = rng.choice((f"{sky}, {degrees} degrees", f"{degrees} degrees, {sky}", sky))
            results.append(text)
            answers.append(f"In {where}: {text}.")
            continue
        first = (rng.choice(("temperature", "temp", "temp_c", "degrees")), degrees)
        second = (rng.choice(("condition", "conditions", "sky", "weather", "description")), sky)
        found = [first, second] if rng.random() < 0.6 else [second, first]
        if rng.random() < 0.25:
            found.insert(0, (rng.choice(("city", "location")), where))
        results.append(json.dumps(dict(found)))
        answers.append(f"In {where}: {degrees} degrees, {sky}.")
    return Task(
        purpose=WEATHER,
        question=choose(rng, _WEATHER, new=new_template).format(p=" and ".join(places)),
        calls=tuple({"place": where} for where in places),
        results=tuple(results),
        answer=" ".join(answers),
    )


def _clock(rng: random.Random, held_out: bool, new_template: bool) -> Task:
    where = place(rng, held_out=held_out)
    now = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
    return Task(
        purpose=CLOCK,
        question=choose(rng, _TIME, new=new_template).format(p=where),
        calls=({"place": where},),
        results=(_returned(rng, now, ("time", "now", "local_time")),),
        answer=f"It is {now} in {where}.",
    )


def _search(rng: random.Random, held_out: bool, new_template: bool) -> Task:
    def query() -> tuple[str]:
        noun, other = rng.sample(_nouns(), 2)
        form = rng.random()
        if form < 0.3:
            return (f"the {noun}",)
        if form < 0.6:
            return (f"{noun} {other}",)
        return (f"{noun} in {place(rng, held_out=held_out)}",)

    (asked,) = draw(query, held_out=held_out, key=lambda text: ("query", text))
    found = rng.choice(rng.choice(_short_lessons()).answers)
    forms = (found, json.dumps({"result": found}), json.dumps({"results": [found]}), json.dumps({"text": found}))
    return Task(
        purpose=SEARCH,
        question=choose(rng, _SEARCHES, new=new_template).format(q=asked),
        calls=({"query": asked},),
        results=(rng.choice(forms),),
        answer=found,
    )


@functools.cache
def _nouns() -> list[str]:
    return [line.split("|")[0].strip() for line in words.PLURALS.strip().splitlines()]


@functools.cache
def _short_lessons() -> list[Lesson]:
    return [lesson for lesson in all_lessons() if all(len(a) < 70 and '"' not in a for a in lesson.answers)]


def _returned(rng: random.Random, value: str, keys: tuple[str, ...]) -> str:
    """A value as tools return it: bare, or in an object."""
    if rng.random() < 0.4:
        return value
    number = value.replace(".", "", 1).lstrip("-").isdigit()
    return json.dumps({rng.choice(keys): json.loads(value) if number and rng.random() < 0.7 else value})


_MAKERS: dict[str, Callable[[random.Random, bool, bool], Task]] = {
    CALCULATOR: _calculation,
    CONVERTER: _conversion,
    WEATHER: _weather,
    CLOCK: _clock,
    SEARCH: _search,
}
