"""Bounds what llguidance makes of a canonical schema where its own limits come late.

The work to intersect expressions doubles with each, and objects with many optional properties fill its parser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.json_schema.walk import contents, inner_first, target

MAX_INTERSECTIONS = 6
"""Patterns, formats and `multipleOf` that one value must match at once."""

MAX_OPTIONAL = 400
"""Optional properties that may come next at one place: those of one object, or of all alternatives."""

type Schema = Mapping[str, Any]


def check_size(schema: Schema, definitions: Mapping[str, Schema]) -> None:
    """Checks a schema and its definitions.

    Raises:
      GrammarError: it exceeds a limit.
    """
    order = inner_first(definitions)
    # Llguidance calculates common multiples in 32 bits.
    if _most(partial(_meeting, keys=("multipleOf",)), schema, definitions, order) > 1:
        raise GrammarError("The schema's `multipleOf` cannot be held: two of them may meet in one value.")
    if _most(partial(_meeting, keys=("pattern", "multipleOf")), schema, definitions, order) > MAX_INTERSECTIONS:
        raise GrammarError(
            f"The schema's `allOf` or `$ref` cannot be held: more than {MAX_INTERSECTIONS} patterns may meet in "
            "one value."
        )
    if _most(_optional, schema, definitions, order) > MAX_OPTIONAL:
        raise GrammarError(
            f"The schema's `properties` cannot be held: more than {MAX_OPTIONAL} of them are optional at one "
            "place. Make some required."
        )


def _most(
    count: Callable[[Schema, Mapping[str, int]], int],
    schema: Schema,
    definitions: Mapping[str, Schema],
    order: Sequence[str],
) -> int:
    """The largest count of a schema and its definitions. What refers back to itself adds nothing."""
    known: dict[str, int] = {}
    for name in order:
        known[name] = count(definitions[name], known)
    return max(count(schema, known), *known.values(), 0)


def _meeting(schema: Schema, known: Mapping[str, int], *, keys: Sequence[str]) -> int:
    """At most how many of some keywords meet in one value of a schema: what `allOf` and `$ref` join is added."""
    counts = partial(_meeting, known=known, keys=keys)
    own, inside = sum(key in schema for key in keys), max(map(counts, contents(schema)), default=0)
    joined = sum(map(counts, schema.get("allOf", []))) + (known.get(target(schema), 0) if "$ref" in schema else 0)
    return max(own, inside) + joined + max(map(counts, schema.get("anyOf", [])), default=0)


def _optional(schema: Schema, known: Mapping[str, int]) -> int:
    """How many optional properties may come next at one place in a schema."""
    counts = partial(_optional, known=known)
    own = len(schema.get("properties", {}).keys() - set(schema.get("required", [])))
    inside = max(map(counts, contents(schema)), default=0)
    here = own + sum(map(counts, (*schema.get("allOf", []), *schema.get("anyOf", []))))
    return max(here + (known.get(target(schema), 0) if "$ref" in schema else 0), inside)
