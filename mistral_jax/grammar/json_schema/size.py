"""Bounds what llguidance makes of a canonical schema where its own limits come late.

The work to intersect expressions doubles with each, and objects with many optional properties fill its parser."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.json_schema.walk import all_within, contents, inner_first, target

MAX_INTERSECTIONS = 6
"""Patterns, formats and `multipleOf` that one value must match at once."""

MAX_DIVISOR_BITS = 31
"""Bits of all `multipleOf` of one value together: llguidance calculates common multiples in 32 bits."""

MAX_REMAINDERS = 20_000
"""Remainders that the automatons of all `multipleOf` have together: llguidance takes up to 25 µs for each, and does not
count them."""

MAX_OPTIONAL = 400
"""Optional properties that may come next at one place: those of one object, or of all alternatives."""

type Schema = Mapping[str, Any]


def check_size(schema: Schema, definitions: Mapping[str, Schema]) -> None:
    """Checks a schema and its definitions.

    Raises:
      GrammarError: it exceeds a limit.
    """
    order = inner_first(definitions)
    if _most(partial(_meeting, weight=_divisor_bits), schema, definitions, order) > MAX_DIVISOR_BITS:
        raise GrammarError(
            "The schema's `multipleOf` cannot be held: several that may meet in one value are too large."
        )
    states = 2 ** _most(partial(_meeting, weight=_remainder_bits), schema, definitions, order)
    if states * sum("multipleOf" in part for part in all_within((schema, *definitions.values()))) > MAX_REMAINDERS:
        raise GrammarError("The schema's `multipleOf` cannot be held: there are too many, or some are too large.")
    if _most(partial(_meeting, weight=_expressions), schema, definitions, order) > MAX_INTERSECTIONS:
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
    count: Callable[[Schema, Mapping[str, float]], float],
    schema: Schema,
    definitions: Mapping[str, Schema],
    order: Sequence[str],
) -> float:
    """The largest count of a schema and its definitions. What refers back to itself adds nothing."""
    known: dict[str, float] = {}
    for name in order:
        known[name] = count(definitions[name], known)
    return max(count(schema, known), *known.values(), 0)


def _meeting(schema: Schema, known: Mapping[str, float], *, weight: Callable[[Schema], float]) -> float:
    """At most how much of some keywords meets in one value of a schema: what `allOf` and `$ref` join is added."""
    counts = partial(_meeting, known=known, weight=weight)
    own, inside = weight(schema), max(map(counts, contents(schema)), default=0)
    joined = sum(map(counts, schema.get("allOf", []))) + (known.get(target(schema), 0) if "$ref" in schema else 0)
    return max(own, inside) + joined + max(map(counts, schema.get("anyOf", [])), default=0)


def _expressions(schema: Schema) -> int:
    return ("pattern" in schema) + ("multipleOf" in schema)


def _divisor_bits(schema: Schema) -> float:
    divisor = schema.get("multipleOf", 1)
    # Four decimal places are possible. Numbers with fewer are brought to as many.
    return math.log2(divisor if divisor == int(divisor) else divisor * 10**8)


def _remainder_bits(schema: Schema) -> float:
    return math.log2(int(f"{Decimal(str(schema.get('multipleOf', 1))).normalize():f}".replace(".", "")))


def _optional(schema: Schema, known: Mapping[str, float]) -> float:
    """How many optional properties may come next at one place in a schema."""
    counts = partial(_optional, known=known)
    own = len(schema.get("properties", {}).keys() - set(schema.get("required", [])))
    inside = max(map(counts, contents(schema)), default=0)
    here = own + sum(map(counts, (*schema.get("allOf", []), *schema.get("anyOf", []))))
    return max(here + (known.get(target(schema), 0) if "$ref" in schema else 0), inside)
