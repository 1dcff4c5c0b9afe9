"""Values of a parsed JSON object, each with its type and range checked: nothing in a file is trusted.

A field that is null counts as absent. A number in quotes is not a number, and true is not 1.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

from conversion.files.regular_file import shortened

LARGEST = 2**31 - 1
"""The default limit of whole numbers: what indices of arrays may be."""


class JSONFields:
    """Typed access to an object.

    Every method returns its default where the field is absent or null. Where there is no default and the method cannot
    return None, the field is required.

    Raises:
      `error`: from every method, in one line that names the field, what it is, and what was expected.
    """

    def __init__(self, values: Mapping[str, Any], *, error: type[Exception], source: str = "") -> None:
        """Takes an object.

        Args:
          values: the parsed object.
          error: what to raise.
          source: what messages begin with, such as the name of the file; "" for nothing.
        """
        self.values = values
        self._error = error
        self._source = source

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def whole(self, key: str, default: int | None = None, *, least: int = 1, most: int = LARGEST) -> int:
        """A whole number in [least, most]."""
        value = self._value(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return value

    def number(self, key: str, default: float | None = None, *, above: float = -math.inf, most: float = 1e300) -> float:
        """A finite number in (above, most]."""
        value = self._value(key, default)
        if not is_number(value) or not above < value <= most:
            plain = above == -math.inf
            raise self.wrong(key, "a finite number" if plain else f"a number above {above:g}, at most {most:g}")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str | None:
        value = self._value(key, default)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def texts(self, key: str) -> tuple[str, ...] | None:
        """A list of strings; None: absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in cast("list[Any]", value)):
            raise self.wrong(key, "a list of texts")
        return tuple(cast("list[str]", value))

    def numbers(self, key: str, *, above: float = -math.inf) -> tuple[float, ...] | None:
        """A non-empty list of finite numbers, each greater than `above`; None: absent."""
        value = self.values.get(key)
        if value is None:
            return None
        listed = cast("list[Any]", value) if isinstance(value, list) else []
        if not listed or not all(is_number(item) and above < item <= 1e300 for item in listed):
            raise self.wrong(key, "a list of positive numbers" if above == 0 else "a list of numbers")
        return tuple(float(item) for item in listed)

    def token_ids(self, key: str) -> tuple[int, ...]:
        """A token id, or a list of them; () where there is none."""
        value = self.values.get(key)
        listed = cast("list[Any]", value) if isinstance(value, list) else [] if value is None else [value]
        if not all(type(item) is int and 0 <= item <= LARGEST for item in listed):
            raise self.wrong(key, "a token id or a list of them")
        return tuple(listed)

    def object(self, key: str) -> JSONFields | None:
        """The object under a key, with the same errors; None: absent."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return JSONFields(cast("dict[str, Any]", value), error=self._error, source=self._named(key))

    def list(self, key: str) -> Sequence[Any] | None:
        """A list of anything; None: absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, list):
            raise self.wrong(key, "a list")
        return cast("Sequence[Any] | None", value)

    def wrong(self, key: str, expected: str) -> Exception:
        """The error of a field with a wrong value."""
        value = self.values.get(key)
        if value is None:
            return self._error(f"{self._named(key)} is missing; expected {expected}")
        return self._error(f"{self._named(key)} is {shown(value)}; expected {expected}")

    def _named(self, key: str) -> str:
        return (
            f"{self._source}: {key}"
            if self._source.endswith(".json")
            else f"{self._source}.{key}"
            if self._source
            else key
        )

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; also for whole numbers beyond the range of floats."""
    if type(value) is int:
        return abs(value) < 2**1000
    return type(value) is float and math.isfinite(value)


def shown(value: Any) -> str:
    """A value as JSON, in one line, shortened."""
    try:
        return shortened(json.dumps(value, ensure_ascii=True), 80)
    except (TypeError, ValueError):  # no JSON, or a number with thousands of digits
        return f"a {type(value).__name__} that cannot be shown"
