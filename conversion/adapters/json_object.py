"""JSON files with fields of known types, and errors that name the file, the field and what was expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from conversion.adapters.errors import AdapterError
from conversion.files.json_file import read_json_object


class JSONObject:
    """The object in a JSON file. A field that is null counts as absent.

    Raises:
      AdapterError: from every method, where a field has another type or range.
    """

    def __init__(self, path: Path, values: Mapping[str, Any]) -> None:
        self.path = path
        self.values = values

    @classmethod
    def read(cls, path: Path) -> JSONObject:
        """Read a file.

        Raises:
          AdapterError: it is missing, not a regular file, too large, nested too deeply, or not a JSON object.
        """
        return cls(path, read_json_object(path, error=AdapterError))

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def whole(self, key: str, default: int | None = None, *, least: int = 0) -> int:
        """A whole number; required where there is no default."""
        value = self._value(key, default)
        if type(value) is not int or value < least:
            raise self.wrong(key, f"a whole number of at least {least}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number; without a default it has to be there."""
        value = self._value(key, default)
        if type(value) not in (int, float) or not is_finite(value):
            raise self.wrong(key, "a finite number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self._value(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str) -> str | None:
        """A string; None: absent."""
        value = self.values.get(key)
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

    def object(self, key: str) -> Mapping[str, Any] | None:
        """An object; None: absent."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object")
        return cast("dict[str, Any] | None", value)

    def wrong(self, key: str, expected: str) -> AdapterError:
        """The error of a field with a wrong value."""
        value = self.values.get(key)
        found = f"{key} is missing" if value is None else f"{key} is {_short(value)}"
        return AdapterError(f"{self.path}: {found}; expected {expected}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        return default if value is None else value


def json_file(values: Mapping[str, Any]) -> bytes:
    """An object as the bytes of a human-readable file."""
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()


def is_finite(value: float) -> bool:
    """Also for whole numbers beyond the range of floats."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
