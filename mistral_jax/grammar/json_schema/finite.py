"""Finds schemas that only values without end match: a completion under them could never end. All are canonical."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mistral_jax.grammar.grammar import GrammarError

type Schema = Mapping[str, Any]


def check_finite(schema: Schema, definitions: Mapping[str, Schema]) -> None:
    """Looks for the definitions that have finite values, until there are no more.

    Raises:
      GrammarError: the schema has no finite value.
    """
    known, grown = set[str](), True
    while grown:
        found = {name for name in definitions if name not in known and _finite(definitions[name], known)}
        grown, known = bool(found), known | found
    if not _finite(schema, known):
        raise GrammarError(
            "The schema has no finite value: it needs itself, directly or through `$ref`. Make a property optional, or "
            "give an alternative in `anyOf` that ends."
        )


def _finite(schema: Schema, known: Collection[str]) -> bool:
    if "$ref" in schema and schema["$ref"].removeprefix("#/$defs/") not in known:
        return False
    if not all(_finite(part, known) for part in schema.get("allOf", [])):
        return False
    if "anyOf" in schema and schema["anyOf"] and not any(_finite(part, known) for part in schema["anyOf"]):
        return False
    types = schema.get("type")
    if types == "object":
        listed, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        # A pattern may decide about a required property that is not listed.
        needed = [
            listed.get(name, {} if "patternProperties" in schema else others) for name in schema.get("required", [])
        ]
        return all(_finite(part, known) for part in needed)
    if types == "array":
        least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        needed = first[:least] + ([schema.get("items", {})] if least > len(first) else [])
        return all(_finite(part, known) for part in needed)
    return True
