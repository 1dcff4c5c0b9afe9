"""Bounds what llguidance makes of a canonical schema where its own limits come late.

The work to intersect expressions doubles with each, and objects with many optional properties fill its parser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mistral_jax.grammar.grammar import GrammarError

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
    counts = _Counts(definitions)
    for part in (schema, *definitions.values()):
        if counts.divisors(part) > 1:
            raise GrammarError("The schema's `multipleOf` cannot be held: two of them may meet in one value.")
        if counts.intersections(part) > MAX_INTERSECTIONS:
            raise GrammarError(
                f"The schema's `allOf` or `$ref` cannot be held: more than {MAX_INTERSECTIONS} patterns may meet in "
                "one value."
            )
        if counts.optional(part) > MAX_OPTIONAL:
            raise GrammarError(
                f"The schema's `properties` cannot be held: more than {MAX_OPTIONAL} of them are optional at one "
                "place. Make some required."
            )


class _Counts:
    def __init__(self, definitions: Mapping[str, Schema]) -> None:
        self._definitions = definitions
        self._known: dict[tuple[str, str], int] = {}

    def intersections(self, schema: Schema) -> int:
        """At most how many expressions are intersected for one value in it."""
        return self._meeting("intersections", schema, ("pattern", "multipleOf"))

    def divisors(self, schema: Schema) -> int:
        """The same for `multipleOf` alone. Llguidance calculates common multiples in 32 bits."""
        return self._meeting("divisors", schema, ("multipleOf",))

    def _meeting(self, what: str, schema: Schema, keys: Sequence[str]) -> int:
        """What `allOf` and `$ref` join is added."""
        counts = partial(self._meeting, what, keys=keys)
        own, inside = sum(key in schema for key in keys), max(map(counts, _children(schema)), default=0)
        joined = sum(map(counts, schema.get("allOf", []))) + self._of_reference(what, schema)
        return max(own, inside) + joined + max(map(counts, schema.get("anyOf", [])), default=0)

    def optional(self, schema: Schema) -> int:
        """How many optional properties may come next at one place in it."""
        own = len(schema.get("properties", {}).keys() - set(schema.get("required", [])))
        inside = max(map(self.optional, _children(schema)), default=0)
        here = own + sum(map(self.optional, (*schema.get("allOf", []), *schema.get("anyOf", []))))
        return max(here + self._of_reference("optional", schema), inside)

    def _of_reference(self, what: str, schema: Schema) -> int:
        if "$ref" not in schema:
            return 0
        name = schema["$ref"].removeprefix("#/$defs/")
        if (what, name) not in self._known:
            self._known[what, name] = 0  # a circle adds nothing
            self._known[what, name] = getattr(self, what)(self._definitions[name])
        return self._known[what, name]


def _children(schema: Schema) -> Iterator[Schema]:
    """The schemas of what a value contains."""
    for key in ("properties", "patternProperties"):
        yield from schema.get(key, {}).values()
    yield from schema.get("prefixItems", [])
    yield from (schema[key] for key in ("items", "additionalProperties") if key in schema)
