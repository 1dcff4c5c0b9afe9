"""Finds schemas that only values without end match: a completion under them could never end. All are canonical."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.json_schema.walk import references_in, target

type Schema = Mapping[str, Any]


def check_finite(schema: Schema, definitions: Mapping[str, Schema]) -> None:
    """Looks for the definitions that have finite values: first those that need no others, then those that need these.

    Raises:
      GrammarError: the schema has no finite value.
    """
    users: dict[str, list[str]] = {name: [] for name in definitions}
    for name, definition in definitions.items():
        for used in references_in(definition):
            users[used].append(name)
    known, candidates = set[str](), set(definitions)
    while candidates:
        found = {name for name in candidates if _finite(definitions[name], known)}
        known |= found
        candidates = {user for name in found for user in users[name]} - known
    if not _finite(schema, known):
        raise GrammarError(
            "The schema has no finite value: it needs itself, directly or through `$ref`. Make a property optional, or "
            "give an alternative in `anyOf` that ends."
        )


def _finite(schema: Schema, known: Collection[str]) -> bool:
    if "$ref" in schema and target(schema) not in known:
        return False
    if not all(_finite(part, known) for part in schema.get("allOf", [])):
        return False
    if "anyOf" in schema and schema["anyOf"] and not any(_finite(part, known) for part in schema["anyOf"]):
        return False
    types = schema.get("type")
    if types == "object":
        listed, others = schema.get("properties", {}), schema.get("additionalProperties", {})
        # A pattern may decide about a required property that is not listed.
        rest = {} if "patternProperties" in schema else others
        return all(_finite(listed.get(name, rest), known) for name in schema.get("required", []))
    if types == "array":
        least, first = schema.get("minItems", 0), schema.get("prefixItems", [])
        needed = first[:least] + ([schema.get("items", {})] if least > len(first) else [])
        return all(_finite(part, known) for part in needed)
    return True
