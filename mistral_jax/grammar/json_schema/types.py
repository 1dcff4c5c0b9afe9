"""The keywords for strings, numbers, arrays and objects."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import cache
from typing import Any

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.json_schema import formats
from mistral_jax.grammar.json_schema.meeting import never_meet
from mistral_jax.grammar.json_schema.values import UNWRITABLE, Json, Where, count, fields, names, number, text
from mistral_jax.grammar.patterns import full_match, search

MAX_STRING = 100_000
"""Largest `minLength` and `maxLength`."""

MAX_ITEMS = 10_000
"""Largest `minItems`, `maxItems`, `minProperties` and `maxProperties`."""

_MAX_PLACES = 4
_MAX_DIVISOR = 10_000

MAX_PATTERNS = 50
"""Patterns of one `patternProperties`."""

type Schema = dict[str, Any]
type Reader = Callable[[Json, Where], Schema]
"""Reads a schema inside another."""


def string_keywords(value: Mapping[str, Json], where: Where) -> Schema:
    """`minLength`, `maxLength`, `pattern`, `format` and `contentEncoding`.

    Raises:
      GrammarError: one of them cannot be held.
    """
    made: Schema = {
        key: count(value[key], key, where, most=MAX_STRING) for key in ("minLength", "maxLength") if key in value
    }
    patterns = list[str]()
    if "pattern" in value:
        patterns.append(_pattern(value["pattern"], "pattern", where))
    if "format" in value:
        if not isinstance(name := value["format"], str):
            where.wrong("format", "a string", name)
        if name in formats.PATTERNS:
            patterns.append(_format(name))
        elif name not in (*formats.BOUNDS, *formats.NO_MEANING):
            known = ", ".join(sorted([*formats.PATTERNS, *formats.BOUNDS, *formats.NO_MEANING]))
            where.refuse("format", f"{name[:80]!r} is none of {known}")
    if "contentEncoding" in value:
        if value["contentEncoding"] != "base64":
            where.refuse("contentEncoding", "only base64 can be held")
        patterns.append(_format("byte"))
    if patterns:
        made["pattern"] = patterns[0]
    if len(patterns) > 1:
        made["allOf"] = [{"pattern": pattern} for pattern in patterns[1:]]
    return made


@cache
def _format(name: str) -> str:
    return f"^{full_match(formats.PATTERNS[name])}$"


def _pattern(value: Json, keyword: str, where: Where) -> str:
    """A pattern in the form that llguidance reads without any dialect: for the whole string."""
    if not isinstance(value, str):
        where.wrong(keyword, "a string", value)
    try:
        return f"^{search(value, without=UNWRITABLE)}$"
    except GrammarError as error:
        where.refuse(keyword, str(error).rstrip("."))


def number_keywords(value: Mapping[str, Json], where: Where) -> Schema:
    """The bounds, `multipleOf`, and the numeric formats.

    Raises:
      GrammarError: one of them cannot be held.
    """
    made: Schema = {}
    for key, exclusive, inwards in (("minimum", "exclusiveMinimum", 1), ("maximum", "exclusiveMaximum", -1)):
        bound = value.get(exclusive)
        if key in value:
            made[key] = number(value[key], key, where)
            if bound is True:  # draft 4: a boolean that makes the other keyword exclusive
                made |= _exclusive(made.pop(key), key, exclusive, inwards, value.get("type"))
        if exclusive in value and not isinstance(bound, bool):
            # A stricter bound of both holds in llguidance, too.
            made |= _stricter(
                made, _exclusive(number(bound, exclusive, where), key, exclusive, inwards, value.get("type"))
            )
    if "multipleOf" in value:
        made["multipleOf"] = _divisor(number(value["multipleOf"], "multipleOf", where), where)
    if (name := value.get("format")) in formats.BOUNDS and isinstance(name, str):
        least, most = formats.BOUNDS[name]
        made["allOf"] = [{"minimum": least, "maximum": most}]
    return made


def _divisor(divisor: float, where: Where) -> float:
    """`multipleOf`, if llguidance reads it exactly: it multiplies by ten until nothing is left behind the point."""
    if divisor <= 0:
        where.wrong("multipleOf", "greater than 0", divisor)
    shifted, places = divisor, 0
    while shifted % 1 and places < _MAX_PLACES:
        shifted, places = shifted * 10, places + 1
    if shifted != Decimal(str(divisor)).scaleb(places) or shifted > _MAX_DIVISOR:
        where.refuse(
            "multipleOf", f"at most {_MAX_PLACES} decimal places and {_MAX_DIVISOR:,} without the point are possible"
        )
    return divisor


def _exclusive(bound: float, key: str, exclusive: str, inwards: int, type_: Json) -> Schema:
    """An exclusive bound.

    Llguidance 1.9.1 takes 10 for a number above 10 and up to 10.5, and -10 for one from -10.5 on and below -10. A whole
    number that is the bound towards zero is therefore moved inwards, by a billionth or by the last digit that can be
    held.
    """
    if type_ == "integer" or bound != int(bound) or bound * inwards < 0:
        return {exclusive: bound}
    digits = len(str(abs(int(bound))))
    return {key: round(bound + inwards * max(1e-9, 10.0 ** (digits - 15)), 9)}


def _stricter(made: Schema, more: Schema) -> Schema:
    ((key, bound),) = more.items()
    if key in made:
        bound = max(bound, made[key]) if key == "minimum" else min(bound, made[key])
    return {key: bound}


def array_keywords(value: Mapping[str, Json], where: Where, read: Reader, *, in_place: bool) -> Schema:
    """The items and their number.

    Args:
      value: The schema.
      where: Its place.
      read: Reads inner schemas.
      in_place: Whether it has keywords that may evaluate items, too.

    Raises:
      GrammarError: one of them cannot be held.
    """
    made: Schema = {
        key: count(value[key], key, where, most=MAX_ITEMS) for key in ("minItems", "maxItems") if key in value
    }
    listed, rest = value.get("prefixItems"), "items" if "items" in value else None
    if isinstance(value.get("items"), list):  # before 2020-12
        listed, rest = value["items"], "additionalItems" if "additionalItems" in value else None
    if listed is not None:
        if not isinstance(listed, list):
            where.wrong("prefixItems", "an array", listed)
        made["prefixItems"] = [read(item, where / "prefixItems" / i) for i, item in enumerate(listed)]
    if rest is None and "unevaluatedItems" in value and value["unevaluatedItems"] is not True:
        if in_place or "contains" in value:
            where.refuse("unevaluatedItems", "it cannot be held beside keywords that evaluate items")
        rest = "unevaluatedItems"
    if rest is not None:
        made["items"] = read(value[rest], where / rest)
    if value.get("uniqueItems", False) is not False and made.get("maxItems", 2) > 1:
        where.refuse("uniqueItems", "that items differ cannot be held")
    return made


def object_keywords(value: Mapping[str, Json], where: Where, read: Reader, *, in_place: bool) -> Schema:
    """The properties and their number.

    Args: see `array_keywords`.

    Raises:
      GrammarError: one of them cannot be held.
    """
    made: Schema = {}
    if "properties" in value:
        listed, at = fields(value["properties"], "properties", where), where / "properties"
        made["properties"] = {text(name, "properties", where): read(part, at / name) for name, part in listed.items()}
    if "patternProperties" in value:
        _add_patterns(made, value["patternProperties"], where, read)
    rest = "additionalProperties" if "additionalProperties" in value else None
    if rest is None and "unevaluatedProperties" in value and value["unevaluatedProperties"] is not True:
        if in_place:
            where.refuse("unevaluatedProperties", "it cannot be held beside keywords that evaluate properties")
        rest = "unevaluatedProperties"
    if rest is not None:
        made["additionalProperties"] = read(value[rest], where / rest)
    if "required" in value:
        made["required"] = names(value["required"], "required", where)
    for key in ("minProperties", "maxProperties"):
        if key in value:
            made[key] = count(value[key], key, where, most=MAX_ITEMS)
    _check_number_of_properties(made, where)
    return made


def _check_number_of_properties(made: Schema, where: Where) -> None:
    """`minProperties` and `maxProperties` can be held in part only."""
    required = made.get("required", [])
    least, most = made.get("minProperties", 0), made.get("maxProperties")
    if least - len(required) > 1:
        # The grammar cannot keep one name from coming twice, and then there are fewer properties.
        where.refuse("minProperties", "at most one property more than the required ones can be demanded")
    optional = made.get("properties", {}).keys() - set(required)
    if optional and (least > len(required) or most is not None):
        # Llguidance can choose one of the optional properties, if there are no others.
        closed = made.get("additionalProperties") == {"anyOf": []} and "patternProperties" not in made
        if not closed or (most is not None and most - len(required) != 1):
            where.refuse(
                "minProperties" if most is None else "maxProperties",
                "beside properties that are not required it can only be held to choose one of them",
            )


def _add_patterns(made: Schema, value: Json, where: Where, read: Reader) -> None:
    at = where / "patternProperties"
    patterns: Schema = {}
    for pattern, part in fields(value, "patternProperties", where).items():
        inner, key = read(part, at / pattern), _pattern(pattern, "patternProperties", where)
        patterns[key] = {"allOf": [patterns[key], inner]} if key in patterns else inner
    if len(patterns) > MAX_PATTERNS:
        where.refuse("patternProperties", f"at most {MAX_PATTERNS} are possible")
    if len(patterns) > 1 and not never_meet(list(patterns)):
        where.refuse("patternProperties", "one name may match two of its patterns")
    if patterns:
        made["patternProperties"] = patterns


def restrict_names(made: Schema, inner: Schema, where: Where) -> None:
    """Brings `propertyNames` into the other keywords for objects.

    Args:
      made: The keywords so far; changed.
      inner: The schema of the names.
      where: The place of both.

    Raises:
      GrammarError: it cannot be held.
    """
    if inner.get("type") == "string":
        del inner["type"]
    if not inner:
        return
    others = made.get("additionalProperties", {})
    allowed = [inner["const"]] if set(inner) == {"const"} else inner["enum"] if set(inner) == {"enum"} else None
    if allowed is not None and "patternProperties" not in made:
        listed = made.get("properties", {})
        made["properties"] = {name: listed.get(name, others) for name in allowed if isinstance(name, str)}
        made["additionalProperties"] = {"anyOf": []}
    elif inner == {"anyOf": []}:
        made["maxProperties"] = 0
    elif set(inner) <= {"pattern", "minLength", "maxLength"} and not made.keys() & {"properties", "patternProperties"}:
        if "pattern" in inner and len(inner) > 1:
            where.refuse("propertyNames", "a pattern and a length together cannot be held")
        length = f"{inner.get('minLength', 0)},{inner.get('maxLength', '')}"
        made["patternProperties"] = {inner.get("pattern", f"^(?:(?s:.){{{length}}})$"): others}
        made["additionalProperties"] = {"anyOf": []}
    else:
        where.refuse(
            "propertyNames", "only names from a list, or of one pattern or length without `properties`, can be held"
        )
