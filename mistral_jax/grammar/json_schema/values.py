"""Reads a schema's text, and checks the JSON values in it: what can be written exactly, and where errors are."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any, NoReturn

from mistral_jax.grammar.grammar import GrammarError

MAX_BYTES = 131_072
"""Bytes of a schema's text."""

MAX_DEPTH = 100
"""Arrays and objects inside each other."""

MAX_NODES = 10_000
"""Values in a schema, those inside others included."""

MAX_INTEGER = 2**53
"""Largest integer in bounds and constants: llguidance calculates with 64-bit floats."""

_MAX_DIGITS = 15
_MAX_EXPONENT = 20

_STRINGS = re.compile(r'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""Strings, the last of which may be unfinished. Takes linear time: it never goes back."""

UNWRITABLE = ((0, 7), (0x0B, 0x0B), (0x0E, 0x1F), (0x7F, 0x7F))
"""Control characters, as ranges, that a JSON string could only have as `\\u001f`, which the grammar does not write."""

_UNWRITABLE = re.compile("[\x00-\x07\x0b\x0e-\x1f\x7f\ud800-\udfff]")

type Json = dict[str, Any] | list[Any] | str | int | Decimal | bool | None


class Where:
    """A place in a schema, for error messages: `$.properties.name`."""

    __slots__ = ("_path",)

    def __init__(self, path: str = "$") -> None:
        self._path = path

    def __truediv__(self, key: str | int) -> Where:
        if isinstance(key, int):
            return Where(f"{self._path}[{key}]")
        return Where(f"{self._path}.{key}" if re.fullmatch(r"[\w$-]{1,80}", key) else f"{self._path}[{_short(key)}]")

    def __str__(self) -> str:
        return self._path if len(self._path) <= 300 else f"{self._path[:300]}..."

    def refuse(self, keyword: str, why: str) -> NoReturn:
        """Raises:
        GrammarError: `keyword` at this place cannot be held.
        """
        raise GrammarError(f"The schema's `{keyword}` at {self} cannot be held: {why}.")

    def wrong(self, keyword: str, expected: str, value: object) -> NoReturn:
        """Raises:
        GrammarError: `keyword` at this place has a wrong value.
        """
        raise GrammarError(f"The schema's `{keyword}` at {self} must be {expected}; it is {_short(value)}.")


def parse_schema(text: str) -> Json:
    """The value of a schema's text; numbers with a fraction or an exponent become `Decimal`.

    Raises:
      GrammarError: it is no JSON, or exceeds a limit.
    """
    if len(text) > MAX_BYTES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise GrammarError(f"The schema has more than {MAX_BYTES:,} bytes.")
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", _STRINGS.sub('""', text)):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    if deepest > MAX_DEPTH:
        raise GrammarError(f"The schema is nested in {deepest} levels; at most {MAX_DEPTH} are possible.")
    try:
        value = json.loads(
            text,
            parse_float=Decimal,
            parse_int=_integer,
            parse_constant=_refuse_constant,
            object_pairs_hook=_without_duplicates,
        )
    except GrammarError:
        raise
    except (ValueError, ArithmeticError, RecursionError) as error:
        raise GrammarError(f"The schema is no JSON: {_short(str(error))}.") from error
    if (nodes := _count(value)) > MAX_NODES:
        raise GrammarError(f"The schema has {nodes:,} values; at most {MAX_NODES:,} are possible.")
    return value


def _integer(digits: str) -> int | Decimal:
    # Longer ones would take quadratic time.
    return int(digits) if len(digits) <= 300 else Decimal(digits)


def _refuse_constant(name: str) -> NoReturn:
    raise GrammarError(f"The schema has {name}, which is no JSON.")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise GrammarError(f"The schema has the key {_short(twice)} twice in one object.")
    return made


def _count(value: Json) -> int:
    total, stack = 0, [value]
    while stack:
        current = stack.pop()
        total += 1
        if isinstance(current, dict):
            stack += current.values()
        elif isinstance(current, list):
            stack += current
    return total


def number(value: Json, keyword: str, where: Where) -> int | float:
    """A number that llguidance takes exactly.

    Raises:
      GrammarError: it is none, too large, or has too many digits.
    """
    if isinstance(value, bool) or not isinstance(value, int | Decimal):
        where.wrong(keyword, "a number", value)
    if isinstance(value, Decimal) and abs(value.adjusted()) <= _MAX_EXPONENT and value == value.to_integral_value():
        value = int(value)
    if isinstance(value, int):
        if abs(value) > MAX_INTEGER:
            where.refuse(keyword, f"integers beyond 2^53 would be rounded, and it has {_short(value)}")
        return value
    if abs(value.adjusted()) > _MAX_EXPONENT or abs(value) > MAX_INTEGER:
        where.refuse(keyword, f"{_short(value)} is too large or too small")
    if len(value.normalize().as_tuple().digits) > _MAX_DIGITS:
        where.refuse(keyword, f"{_short(value)} has more than {_MAX_DIGITS} digits and would be rounded")
    return float(value)


def count(value: Json, keyword: str, where: Where, *, most: int) -> int:
    """A number of items or characters.

    Raises:
      GrammarError: it is no such number, or more than `most`.
    """
    made = value
    if isinstance(made, Decimal) and abs(made.adjusted()) <= _MAX_EXPONENT and made == made.to_integral_value():
        made = int(made)
    if isinstance(made, bool) or not isinstance(made, int) or made < 0:
        where.wrong(keyword, "an integer from 0 on", value)
    if made > most:
        where.refuse(keyword, f"at most {most:,} is possible")
    return made


def text(value: Json, keyword: str, where: Where) -> str:
    """A text that a completion can contain as it is.

    Raises:
      GrammarError: it is none, or has characters that the grammar cannot write.
    """
    if not isinstance(value, str):
        where.wrong(keyword, "a string", value)
    if found := _UNWRITABLE.search(value):
        where.refuse(keyword, f"a string with the character U+{ord(found[0]):04X} cannot be written")
    return value


def literal(value: Json, keyword: str, where: Where) -> Any:
    """A constant, for llguidance.

    Raises:
      GrammarError: a number or string in it cannot be written exactly.
    """
    match value:
        case None | bool():
            return value
        case str():
            return text(value, keyword, where)
        case dict():
            return {text(k, keyword, where): literal(v, keyword, where) for k, v in value.items()}
        case list():
            return [literal(item, keyword, where) for item in value]
        case _:
            return number(value, keyword, where)


def members(value: Json, keyword: str, where: Where) -> Sequence[Json]:
    """Raises:
    GrammarError: it is no array.
    """
    if not isinstance(value, list):
        where.wrong(keyword, "an array", value)
    return value


def fields(value: Json, keyword: str, where: Where) -> Mapping[str, Json]:
    """Raises:
    GrammarError: it is no object.
    """
    if not isinstance(value, dict):
        where.wrong(keyword, "an object", value)
    return value


def names(value: Json, keyword: str, where: Where) -> list[str]:
    """An array of strings, each once.

    Raises:
      GrammarError: it is none.
    """
    return list(dict.fromkeys(text(item, keyword, where) for item in members(value, keyword, where)))


def _short(value: object) -> str:
    shown = str(value) if isinstance(value, Decimal) else repr(value) if isinstance(value, str) else str(value)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."
