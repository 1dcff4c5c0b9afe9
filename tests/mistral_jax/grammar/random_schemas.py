"""JSON schemas of growing difficulty from a seed, as strict clients write them."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

type Schema = dict[str, Any]

WORDS = ("name", "größe", "価格", "e-mail", "is ok?", 'quo"ted', "back\\slash", "id", "tags", "x/y", "😀", "$ref")
PATTERNS = (
    "^[A-Z]{2}-[0-9]{3}$",
    "^(red|green|blue)$",
    "^\\d{3}(-\\d{2})?$",
    "^[^aeiou\\s]{1,5}$",
    "^\\w+@\\w+\\.(de|com)$",
    "^(ab|ba)*c?$",
    "^[\\u00e0-\\u00ff]{2,4}$",
    "^.{3}$",
    "^a|b$",
    "x+y",
)
FORMATS = ("date", "time", "date-time", "duration", "ipv4", "ipv6", "uuid", "email", "hostname", "uri", "json-pointer")


def random_schema(seed: int) -> Schema:
    """A schema; larger seeds give deeper ones with more keywords. All can be held, and all objects are closed."""
    chance = random.Random(seed)
    level = seed // 40  # 0 to 4 in the first 200
    made = _object(chance, level, depth=1 + level // 2)
    if level >= 3:
        made["$defs"] = {
            "node": {
                "type": "object",
                "properties": {
                    "value": _leaf(chance, level),
                    "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            },
            "tree": {
                "type": "array",
                "items": {"anyOf": [{"$ref": "#/$defs/tree"}, {"type": "boolean"}]},
                "maxItems": 2,
            },
        }
        made["properties"]["list"] = {"$ref": "#/$defs/node"}
        made["properties"]["tree"] = {"$ref": "#/$defs/tree", "description": "recursion"}
        made["required"] += ["list", "tree"]
    return made


def _object(chance: random.Random, level: int, depth: int) -> Schema:
    names = chance.sample(WORDS, chance.randint(1, 3 + level // 2))
    required = [name for name in names if level == 0 or chance.random() < 0.7]
    return {
        "type": "object",
        "properties": {name: _any(chance, level, depth) for name in names},
        "required": required,
        "additionalProperties": False,
    }


def _any(chance: random.Random, level: int, depth: int) -> Schema:
    if depth > 0 and chance.random() < 0.4:
        return chance.choice((_object, _array, _union))(chance, level, depth - 1)
    return _leaf(chance, level)


def _array(chance: random.Random, level: int, depth: int) -> Schema:
    least = chance.randint(0, 2)
    made: Schema = {"type": "array", "items": _any(chance, level, depth), "minItems": least, "maxItems": least + 2}
    if level >= 2 and chance.random() < 0.4:
        made["prefixItems"] = [_leaf(chance, level), _leaf(chance, level)]
    return made


def _union(chance: random.Random, level: int, depth: int) -> Schema:
    if level >= 2 and chance.random() < 0.5:
        options = [_object(chance, level, depth) for _ in range(2)]
        for i, option in enumerate(options):
            option["properties"] = {"kind": {"const": f"k{i}"}, **option["properties"]}
            option["required"] = ["kind", *option["required"]]
        return {"oneOf": options}
    return {"anyOf": [_any(chance, level, depth), {"type": "null"}]}


def _leaf(chance: random.Random, level: int) -> Schema:
    kinds: list[Callable[[random.Random], Schema]] = [_enum, _text, _integer, lambda _: {"type": "boolean"}]
    if level >= 1:
        kinds += [_number, _pattern, lambda _: {"type": ["integer", "null"]}]
    if level >= 2:
        kinds += [_format, _multiple, _both]
    return chance.choice(kinds)(chance)


def _enum(chance: random.Random) -> Schema:
    values = chance.sample(["a", "ab", "ü", "日本", 1, -2.5, True, None, "0", "\n", "a\\b"], chance.randint(1, 4))
    return {"enum": values} if len(values) > 1 else {"const": values[0]}


def _text(chance: random.Random) -> Schema:
    least = chance.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + chance.randint(0, 8)}


def _integer(chance: random.Random) -> Schema:
    low = chance.choice((-1000, -7, 0, 1, 99, 2**40))
    return {"type": "integer", "minimum": low, "maximum": low + chance.choice((0, 1, 9, 12345))}


def _number(chance: random.Random) -> Schema:
    low = chance.choice((-10.5, -0.001, 0, 0.1, 3, 1234.5))
    key = chance.choice(("maximum", "exclusiveMaximum"))
    return {
        "type": "number",
        chance.choice(("minimum", "exclusiveMinimum")): low,
        key: low + chance.choice((0.5, 1, 33)),
    }


def _multiple(chance: random.Random) -> Schema:
    return {"type": "integer", "multipleOf": chance.choice((2, 5, 7, 12)), "minimum": -50, "maximum": 5000}


def _pattern(chance: random.Random) -> Schema:
    return {"type": "string", "pattern": chance.choice(PATTERNS), "maxLength": 24}


def _format(chance: random.Random) -> Schema:
    return {"type": "string", "format": chance.choice(FORMATS)}


def _both(chance: random.Random) -> Schema:
    low = chance.randint(0, 4)
    return {
        "allOf": [{"type": "integer", "minimum": low}, {"maximum": low + 6, "multipleOf": chance.choice((1, 2, 3))}]
    }
