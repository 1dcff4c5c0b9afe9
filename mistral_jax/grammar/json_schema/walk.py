"""Ways through canonical schemas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

type Schema = Mapping[str, Any]


def target(schema: Schema) -> str:
    """The name of the definition that a `$ref` means."""
    return schema["$ref"].removeprefix("#/$defs/")


def contents(schema: Schema) -> Iterator[Schema]:
    """The schemas of what a value contains: its properties and items."""
    for key in ("properties", "patternProperties"):
        yield from schema.get(key, {}).values()
    yield from schema.get("prefixItems", [])
    yield from (schema[key] for key in ("items", "additionalProperties") if key in schema)


def all_within(schemas: Iterable[Schema]) -> Iterator[Schema]:
    """The schemas and all that are in them."""
    stack = list(schemas)
    while stack:
        part = stack.pop()
        yield part
        stack += [*contents(part), *part.get("allOf", []), *part.get("anyOf", [])]


def references_in(schema: Schema) -> set[str]:
    """The names of all definitions that a schema and those in it refer to."""
    return {target(part) for part in all_within([schema]) if "$ref" in part}


def inner_first(definitions: Mapping[str, Schema]) -> list[str]:
    """The names of definitions, those first that others refer to, as far as there are no circles."""
    order, seen = list[str](), set[str]()
    for start in definitions:
        stack = [(start, False)]
        while stack:
            name, done = stack.pop()
            if done:
                order.append(name)
            elif name not in seen:
                seen.add(name)
                stack.append((name, True))
                stack += [(used, False) for used in references_in(definitions[name]) if used not in seen]
    return order
