"""JSON files of model folders: one way to read them, with bounds, and one form of error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from conversion.files.regular_file import read_regular, reason_of

MOST_BYTES = 4 * 2**20
"""Limit for configurations and other files without a vocabulary."""
MOST_VOCABULARY_BYTES = 64 * 2**20
"""Limit for tokenizer.json and tekken.json: the largest of the family has 20 million bytes."""
MOST_DEPTH = 64
"""Levels of objects and lists, few enough that code may recurse over a value."""
_MOST_VALUES = 4_000_000
"""Counted by commas and brackets. A value of two bytes takes up to a hundred in memory; the largest tokenizer has a
million."""

_LONE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json_object(
    path: Path | str, *, error: Callable[[str], Exception], most: int = MOST_BYTES, missing_ok: bool = False
) -> dict[str, Any]:
    """The object in a JSON file.

    Args:
      path: the file.
      error: what to raise, with one line that names the file.
      most: bytes that such a file may have.
      missing_ok: {} where there is no file.
    Raises:
      error: it is missing, not a regular file, too large, not UTF-8, not JSON, nested too deeply, or not an object.
    """
    try:
        data = read_regular(path, most=most)
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise error(f"there is no file {path}") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read: {reason_of(problem)}") from problem
    return parse_json_object(data, str(path), error=error)


def parse_json_object(data: bytes, source: str, *, error: Callable[[str], Exception]) -> dict[str, Any]:
    """The JSON object in some bytes; `source` is their name in messages.

    Raises:
      error: see `read_json_object`.
    """
    if sum(map(data.count, (b",", b"[", b"{"))) > _MOST_VALUES:
        raise error(f"{source} holds more than {_MOST_VALUES:,} values, more than any file of its kind")
    try:
        value: Any = json.loads(data.decode("utf-8-sig"))
        if _LONE_SURROGATE.search(data):  # or half of a proper pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeDecodeError as problem:
        raise error(f"{source} is not UTF-8 (at byte {problem.start}); was the download cut short?") from problem
    except UnicodeEncodeError as problem:
        raise error(f"{source} has half of a surrogate pair in a text, which no UTF-8 text has") from problem
    except json.JSONDecodeError as problem:
        raise error(f"{source} is no valid JSON: {problem}; was the download cut short?") from problem
    except ValueError as problem:
        raise error(f"{source} is no JSON that can be read: {reason_of(problem)}") from problem
    except RecursionError:
        raise error(_too_deep(source)) from None
    if not isinstance(value, dict):
        raise error(f"{source} holds a JSON {type(value).__name__}; expected an object")
    if is_deeper(value, MOST_DEPTH):
        raise error(_too_deep(source))
    return cast("dict[str, Any]", value)


def is_deeper(value: Any, most: int) -> bool:
    """Whether lists and objects are nested in more than `most` levels."""
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (
                cast("dict[str, Any]", outer).values() if isinstance(outer, dict) else cast("list[Any]", outer)
            )
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _too_deep(source: str) -> str:
    return f"{source} is nested in more than {MOST_DEPTH} levels, more than any file of its kind"
