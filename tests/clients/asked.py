"""What the tests ask for: types of structured output, and a tool."""

from __future__ import annotations

import enum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

QUESTION: Any = [{"role": "user", "content": "What will the weather be in Paris?"}]
TOO_LONG: Any = [{"role": "user", "content": "word " * 3000}]
"""More than the model's context."""


class Forecast(BaseModel):
    """The weather of a city."""

    city: Literal["Paris", "Rome", "Oslo"]
    days: int = Field(ge=1, le=7)
    note: str = Field(max_length=12)


class Transport(enum.Enum):
    TRAIN = "train"
    FERRY = "ferry"


class Trip(BaseModel):
    """A list of other objects, an enumeration, a number, and what may be null."""

    stops: list[Forecast] = Field(min_length=1, max_length=2)
    by: Transport
    price: float | None
    booked: bool


class Anything(BaseModel):
    """Every JSON object is one."""

    model_config = ConfigDict(extra="allow")


PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
        "days": {"type": "integer", "minimum": 1, "maximum": 7},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
TOOL: Any = {
    "type": "function",
    "function": {"name": "get_weather", "description": "The weather of a city.", "parameters": PARAMETERS},
}


class WeatherArguments(BaseModel):
    """Arguments of `TOOL`."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Rome", "Oslo"]
    days: int = Field(ge=1, le=7)
