"""The functions that conversations offer, each under several names, as OpenAI's API describes them.

Names and parameters differ from one conversation to the next, so that the model has to read them. Those that begin with
`~` are never trained on: the evaluation has them.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from demo.skills.held_out import choose
from demo.tools.varied_names import at_times_varied


@dataclass(frozen=True, kw_only=True)
class Function:
    """What one function is for, with the ways to describe it."""

    names: tuple[str, ...]
    descriptions: tuple[str, ...]
    parameters: tuple[Mapping[str, str], ...]
    """Each a way to name the parameters: the role of a parameter -> its name."""
    types: Mapping[str, str]
    """JSON types by role; "string" if not given."""
    optional: tuple[tuple[str, dict[str, Any]], ...] = ()
    """Parameters that need not be given, which calls leave out: their names and schemas."""


@dataclass(frozen=True, kw_only=True)
class Offered:
    """A function as one conversation has it."""

    name: str
    parameters: Mapping[str, str]
    """The role of a parameter -> its name."""
    tool: dict[str, Any]
    """OpenAI's description."""

    def call(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A call; the arguments are given by role."""
        return {"name": self.name, "arguments": {name: arguments[role] for role, name in self.parameters.items()}}


CALCULATOR, CONVERTER, WEATHER, CLOCK, SEARCH = "calculator", "converter", "weather", "clock", "search"

CALLED = {
    CALCULATOR: Function(
        names=("calculator", "calculate", "calc", "compute", "evaluate", "math", "eval_expression", "~do_math"),
        descriptions=(
            "Works out an arithmetic expression.",
            "Evaluate a mathematical expression.",
            "Calculates.",
            "Does arithmetic: + - * /",
            "Calculate the result of an expression",
            "A calculator",
            "",
        ),
        parameters=(
            {"expression": "expression"},
            {"expression": "expr"},
            {"expression": "formula"},
            {"expression": "input"},
            {"expression": "~calculation"},
        ),
        types={},
    ),
    CONVERTER: Function(
        names=(
            "convert_units",
            "unit_converter",
            "convert",
            "convert_unit",
            "units",
            "unit_conversion",
            "~change_unit",
        ),
        descriptions=(
            "Converts between units.",
            "Convert a value from one unit to another.",
            "Converts lengths, weights, volumes, times and temperatures.",
            "Unit conversion",
            "",
        ),
        parameters=(
            {"value": "value", "start": "from_unit", "end": "to_unit"},
            {"value": "value", "start": "from", "end": "to"},
            {"value": "amount", "start": "from", "end": "to"},
            {"value": "number", "start": "source", "end": "target"},
            {"value": "~quantity", "start": "unit", "end": "into"},
        ),
        types={"value": "number"},
    ),
    WEATHER: Function(
        names=("get_weather", "get_current_weather", "weather", "weather_now", "fetch_weather", "~current_weather"),
        descriptions=(
            "Get the current weather.",
            "The weather of a place.",
            "Get the current weather in a given location",
            "Tells the weather in a city.",
            "",
        ),
        parameters=(
            {"place": "location"},
            {"place": "city"},
            {"place": "place"},
            {"place": "~town"},
        ),
        types={},
        optional=(
            ("unit", {"type": "string", "enum": ["celsius", "fahrenheit"]}),
            ("days", {"type": "integer"}),
        ),
    ),
    CLOCK: Function(
        names=("get_time", "get_current_time", "time", "clock", "local_time", "~time_in"),
        descriptions=(
            "Get the current time.",
            "The time in a city.",
            "Tells what time it is somewhere.",
            "",
        ),
        parameters=(
            {"place": "city"},
            {"place": "location"},
            {"place": "place"},
            {"place": "~town"},
        ),
        types={},
    ),
    SEARCH: Function(
        names=("search", "web_search", "search_web", "find", "lookup", "~look_up"),
        descriptions=(
            "Searches the web.",
            "Look something up.",
            "Search for information on the internet",
            "Finds pages.",
            "",
        ),
        parameters=(
            {"query": "query"},
            {"query": "q"},
            {"query": "text"},
            {"query": "~words"},
        ),
        types={},
        optional=(("limit", {"type": "integer"}),),
    ),
}
"""Functions that are called, by what they are for."""

_NEVER_CALLED = (
    Function(
        names=("send_email", "send_mail", "email"),
        descriptions=("Sends an email.", "Send a message to somebody", ""),
        parameters=({"to": "to", "subject": "subject", "body": "body"}, {"to": "recipient", "body": "text"}),
        types={},
    ),
    Function(
        names=("set_alarm", "set_timer", "remind_me"),
        descriptions=("Sets an alarm.", "Wakes the user", ""),
        parameters=({"time": "time"}, {"time": "at", "text": "label"}),
        types={},
    ),
    Function(
        names=("get_stock_price", "stock_price", "stocks"),
        descriptions=("The price of a stock.", "Get the current price of a share", ""),
        parameters=({"symbol": "symbol"}, {"symbol": "ticker"}),
        types={},
    ),
    Function(
        names=("list_files", "read_file", "open_file"),
        descriptions=("Lists the files of a folder.", "Reads a file", ""),
        parameters=({"path": "path"}, {"path": "folder", "count": "limit"}),
        types={"count": "integer"},
    ),
)


def offer(rng: random.Random, purpose: str, *, new_names: bool = False) -> Offered:
    """A function that can be called.

    Args:
      purpose: A key of `CALLED`.
      new_names: With a name and parameters that are never trained on.
    """
    return _offer(rng, CALLED[purpose], new_names=new_names)


def offer_other(rng: random.Random) -> Offered:
    """A function that no question needs."""
    return _offer(rng, rng.choice(_NEVER_CALLED), new_names=False)


def _offer(rng: random.Random, function: Function, *, new_names: bool) -> Offered:
    name = choose(rng, function.names, new=new_names)
    ways = [way for way in function.parameters if any(n.startswith("~") for n in way.values()) == new_names]
    parameters = {role: name.removeprefix("~") for role, name in rng.choice(ways).items()}
    if not new_names:
        (name,) = at_times_varied(rng, [name])
        parameters = dict(zip(parameters, at_times_varied(rng, parameters.values()), strict=True))
    properties: dict[str, Any] = {
        name: {"type": function.types.get(role, "string")} for role, name in parameters.items()
    }
    required = list(properties)
    for extra, schema in function.optional:
        if rng.random() < 0.3:
            properties[extra] = dict(schema)
    described: dict[str, Any] = {"name": name}
    if description := rng.choice(function.descriptions):
        described["description"] = description
    described["parameters"] = {"type": "object", "properties": properties, "required": required}
    return Offered(name=name, parameters=parameters, tool={"type": "function", "function": described})
