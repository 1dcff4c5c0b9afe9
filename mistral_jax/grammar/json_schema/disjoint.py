"""Shows that no value matches two schemas at once, so that `oneOf` is `anyOf`. In doubt, one might.

All schemas here are canonical."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

type Schema = Mapping[str, Any]

_ALL = frozenset({"null", "boolean", "number", "string", "array", "object"})
_MAX_DEPTH = 8
_MAX_COMPARISONS = 20_000


class Disjointness:
    """Compares schemas with references to the same definitions."""

    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._left = _MAX_COMPARISONS
        self._constants: dict[int, tuple[frozenset[str], frozenset[str]]] = {}

    def overlapping(self, schemas: Sequence[Schema]) -> tuple[int, int] | None:
        """The first two schemas that one value might match, by their numbers; None if there are none."""
        parts = [self._parts(schema) for schema in schemas]
        names = {name for part in parts[:1] for inner in part for name in inner.get("required", [])}
        if any(self._discriminates(name, parts) for name in names):
            return None
        for i, first in enumerate(schemas):
            for j in range(i + 1, len(schemas)):
                if not self._apart(first, schemas[j], _MAX_DEPTH):
                    return i, j
        return None

    def _discriminates(self, name: str, schemas: Sequence[Sequence[Schema]]) -> bool:
        """Whether all schemas are of objects that need a property, with other constants in each."""
        total, together = 0, set[str]()
        for parts in schemas:
            needed = any(name in part.get("required", []) for part in parts)
            if not needed or self._types(parts, _MAX_DEPTH) != frozenset({"object"}):
                return False
            values = self._values([inner for part in _property(parts, name) for inner in self._parts(part)])
            if values is None:
                return False
            total, together = total + len(values), together | values
        return total == len(together)

    def _apart(self, first: Schema, second: Schema, depth: int) -> bool:
        self._left -= 1
        if depth == 0 or self._left < 0:
            return False
        a, b = self._parts(first), self._parts(second)
        types = self._types(a, depth) & self._types(b, depth)
        if not types:
            return True
        for these, those in ((a, b), (b, a)):
            # A union is apart if each of its schemas is.
            for part in these:
                if "anyOf" in part and all(
                    self._apart(option, {"allOf": list(those)}, depth - 1) for option in part["anyOf"]
                ):
                    return True
        values, others = self._values(a), self._values(b)
        if values is not None and others is not None:
            return values.isdisjoint(others)
        return (
            all(_ranges_apart(a, b, type_) for type_ in types if type_ != "object")
            and ("object" not in types or self._objects_apart(a, b, depth))
        )  # fmt: skip

    def _parts(self, schema: Schema) -> list[Schema]:
        """The schemas that hold all at once: itself, what it refers to, and its `allOf`."""
        found, seen, queue = list[Schema](), set[str](), [schema]
        while queue and len(found) < 50:
            part = queue.pop()
            found.append(part)
            queue += part.get("allOf", [])
            name = part.get("$ref")
            if name is not None and name not in seen:
                seen.add(name)
                queue.append(self._definitions.get(name.removeprefix("#/$defs/"), {}))
        return found

    def _types(self, parts: Sequence[Schema], depth: int) -> frozenset[str]:
        """The types that values of all parts may have."""
        types = _ALL
        for part in parts:
            if "type" in part:
                given = part["type"]
                types &= {"number" if t == "integer" else t for t in ([given] if isinstance(given, str) else given)}
            if (constants := self._constants_of(part)) is not None:
                types &= constants[1]
            if "anyOf" in part and depth > 1:
                options = [self._types(self._parts(option), depth - 1) for option in part["anyOf"]]
                types &= frozenset().union(*options)
        return types

    def _values(self, parts: Sequence[Schema]) -> frozenset[str] | None:
        """The constants that a value may be, as text; None: others, too."""
        found = (constants for part in parts if (constants := self._constants_of(part)) is not None)
        return next((values for values, _ in found), None)

    def _constants_of(self, part: Schema) -> tuple[frozenset[str], frozenset[str]] | None:
        """The constants of a schema, as text, and their types; None if it has none."""
        if "const" not in part and "enum" not in part:
            return None
        if (known := self._constants.get(id(part))) is None:
            values = [part["const"]] if "const" in part else part["enum"]
            texts = frozenset(json.dumps(value, sort_keys=True) for value in values)
            known = self._constants[id(part)] = texts, frozenset(map(_type_of, values))
        return known

    def _objects_apart(self, a: Sequence[Schema], b: Sequence[Schema], depth: int) -> bool:
        """Whether a property that both need, or that one needs and the other forbids, tells objects apart."""
        for these, those in ((a, b), (b, a)):
            for name in {name for part in these for name in part.get("required", [])}:
                ours, theirs = _property(these, name), _property(those, name)
                needed = any(name in part.get("required", []) for part in those)
                if any(part == {"anyOf": []} for part in theirs):
                    return True
                if needed and self._apart({"allOf": ours}, {"allOf": theirs}, depth - 1):
                    return True
        return False


def _property(parts: Sequence[Schema], name: str) -> list[Schema]:
    """What holds for a property."""
    found = list[Schema]()
    for part in parts:
        if name in part.get("properties", {}):
            found.append(part["properties"][name])
        elif "additionalProperties" in part and "patternProperties" not in part:
            found.append(part["additionalProperties"])
    return found


def _ranges_apart(a: Sequence[Schema], b: Sequence[Schema], type_: str) -> bool:
    """Whether bounds tell values of a type apart."""
    low, high = {
        "number": (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")),
        "string": (("minLength",), ("maxLength",)),
        "array": (("minItems",), ("maxItems",)),
    }.get(type_, ((), ()))
    for these, those in ((a, b), (b, a)):
        least = max([-math.inf, *(part[key] for part in those for key in low if key in part)])
        most = min([math.inf, *(part[key] for part in these for key in high if key in part)])
        # Bounds that exclude themselves and meet are apart, too, but rare.
        if most < least:
            return True
    return False


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case str():
            return "string"
        case list():
            return "array"
        case dict():
            return "object"
        case _:
            return "number"
