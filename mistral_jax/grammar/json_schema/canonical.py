"""Brings a schema of any draft into the form that llguidance holds exactly."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.json_schema import keywords
from mistral_jax.grammar.json_schema.disjoint import Disjointness
from mistral_jax.grammar.json_schema.finite import check_finite
from mistral_jax.grammar.json_schema.references import References
from mistral_jax.grammar.json_schema.size import check_size
from mistral_jax.grammar.json_schema.types import (
    array_keywords,
    number_keywords,
    object_keywords,
    restrict_names,
    string_keywords,
)
from mistral_jax.grammar.json_schema.values import Json, Where, literal, members, parse_schema

MAX_CHOICES = 2_000
"""Values of one `enum`, and schemas of one `anyOf`, `oneOf` or `allOf`."""

MAX_DEFINITIONS = 1_000
"""Schemas that are referred to."""

type Schema = dict[str, Any]

NOTHING: Schema = {"anyOf": []}
"""No value matches. Llguidance says `anyOf is empty` where one is needed."""


def canonical(text: str) -> Schema:
    """The schema for llguidance.

    Its keywords are those of 2020-12: type, properties, patternProperties, additionalProperties, required,
    minProperties, maxProperties, prefixItems, items, minItems, maxItems, minLength, maxLength, pattern, the bounds of
    numbers, multipleOf, const, enum, anyOf, allOf, and `$ref` to `#/$defs/NAME`. Their order is that of the schema,
    because it gives the order of properties.

    Args:
      text: The schema as JSON text, of draft 4, 6, 7, 2019-09 or 2020-12. Where the drafts contradict each other, the
        stricter reading is taken: what is written beside `$ref` holds.

    Raises:
      GrammarError: it is no schema, exceeds a limit, or asks for what cannot be held; the keyword and its place are
        named.
    """
    root = parse_schema(text)
    if isinstance(root, dict) and (draft := root.get("$schema")) is not None:
        known = isinstance(draft, str) and draft.rstrip("#") in keywords.DRAFTS
        if not known:
            Where().refuse("$schema", f"{draft!r} is none of the drafts 4, 6, 7, 2019-09 and 2020-12"[:300])
    return _Canonical(root).whole()


class _Canonical:
    def __init__(self, root: Json) -> None:
        self._root = root
        self._references = References(root)
        self._definitions: dict[str, Schema] = {}
        self._names: dict[int, str] = {}
        """Names of definitions by the identity of what they define."""
        self._unread: list[tuple[str, Json, Where]] = []
        """Definitions that were referred to and are not read yet."""
        self._one_of: list[tuple[list[Schema], Where]] = []
        """What must turn out to be disjoint."""

    def whole(self) -> Schema:
        schema = self.schema(self._root, Where())
        while self._unread:
            name, value, where = self._unread.pop()
            self._definitions[name] = self.schema(value, where)
        disjointness = Disjointness(self._definitions)
        for options, where in self._one_of:
            if (pair := disjointness.overlapping(options)) is not None:
                where.refuse(
                    "oneOf",
                    f"a value may match its schemas {pair[0]} and {pair[1]} at once; "
                    "`anyOf`, or schemas that a type or a required constant tells apart, can be held",
                )
        check_finite(schema, self._definitions)
        check_size(schema, self._definitions)
        return {**schema, "$defs": self._definitions} if self._definitions else schema

    def schema(self, value: Json, where: Where) -> Schema:
        """One schema, and what it refers to."""
        if isinstance(value, bool):
            return {} if value else dict(NOTHING)
        if not isinstance(value, dict):
            raise GrammarError(f"The schema at {where} must be an object or a boolean.")
        self._check_keywords(value, where)
        made = list[tuple[str, Any]]()
        simple = False
        for key, content in value.items():
            if key in keywords.IN_PLACE:
                made += self._in_place(key, content, value, where)
            elif not simple and key in (*keywords.STRING, *keywords.NUMBER, *keywords.ARRAY, *keywords.OBJECT, "type"):
                # Together, at the place of the first: llguidance reads runs of them, and they know of each other.
                simple = True
                made += self._simple(value, where).items()
        return _joined(made)

    def _check_keywords(self, value: Mapping[str, Json], where: Where) -> None:
        for key, content in value.items():
            if key in keywords.UNSUPPORTED:
                if not _means_nothing(key, content, value):
                    where.refuse(key, keywords.UNSUPPORTED[key])
            elif key in ("$id", "id") and isinstance(content, str):
                pass
            elif key in ("then", "else", "$anchor", "minContains", "maxContains") or key.startswith("x-"):
                pass  # `then` and `else` mean nothing without `if`
            elif key not in (
                *keywords.ANNOTATIONS,
                *keywords.IN_PLACE,
                *keywords.STRING,
                *keywords.NUMBER,
                *keywords.ARRAY,
                *keywords.OBJECT,
                "type",
            ):
                where.refuse(key, "the keyword is not known; names of annotations may begin with `x-`")

    def _in_place(self, key: str, content: Json, value: Mapping[str, Json], where: Where) -> list[tuple[str, Any]]:
        at = where / key
        match key:
            case "$ref":
                return [(key, f"#/$defs/{self._definition(content, where)}")]
            case "const":
                return [(key, literal(content, key, where))]
            case "enum":
                options = self._listed(content, key, where)
                types = _types(value, where)
                kept = [option for option in options if types is None or any(has_type(option, t) for t in types)]
                return [("enum", [literal(option, key, where) for option in kept])] if kept else [("anyOf", [])]
            case "allOf":
                return [(key, [self.schema(item, at / i) for i, item in enumerate(self._listed(content, key, where))])]
            case _:
                options = [self.schema(item, at / i) for i, item in enumerate(self._listed(content, key, where))]
                if key == "oneOf":
                    self._one_of.append((options, where))
                return [("anyOf", options)]

    def _listed(self, content: Json, key: str, where: Where) -> list[Json]:
        listed = list(members(content, key, where))
        if not listed:
            where.wrong(key, "an array that is not empty", content)
        if len(listed) > MAX_CHOICES:
            where.refuse(key, f"at most {MAX_CHOICES:,} are possible, and it has {len(listed):,}")
        return listed

    def _definition(self, reference: Json, where: Where) -> str:
        """The name of what a reference means, which is read later: a chain of references may be long."""
        target = self._references.resolve(reference, where)
        name = self._names.get(id(target))
        if name is None:
            if len(self._names) == MAX_DEFINITIONS:
                where.refuse("$ref", f"at most {MAX_DEFINITIONS:,} definitions are possible")
            name = self._names[id(target)] = f"d{len(self._names)}"
            self._definitions[name] = {}
            self._unread.append((name, target, Where(str(reference)[:200])))
        return name

    def _simple(self, value: Mapping[str, Json], where: Where) -> Schema:
        """The keywords for values of one type each."""
        made: Schema = {}
        types = _types(value, where)
        if types is not None:
            made["type"] = types[0] if len(types) == 1 else types
        in_place = any(key in value for key in (*keywords.IN_PLACE, "if", "dependentSchemas"))
        made |= string_keywords(value, where)
        numbers = number_keywords(value, where)
        if both := [*made.get("allOf", []), *numbers.get("allOf", [])]:
            numbers["allOf"] = both
        made |= numbers
        made |= array_keywords(value, where, self.schema, in_place=in_place)
        made |= object_keywords(value, where, self.schema, in_place=in_place)
        if "propertyNames" in value:
            restrict_names(
                made, self.schema(self._referred(value["propertyNames"], where), where / "propertyNames"), where
            )
        return made

    def _referred(self, value: Json, where: Where) -> Json:
        """What a schema that is only a reference refers to."""
        for _ in range(MAX_DEFINITIONS):
            if not isinstance(value, dict) or {key for key in value if key not in keywords.ANNOTATIONS} != {"$ref"}:
                break
            value = self._references.resolve(value["$ref"], where)
        return value


def _types(value: Mapping[str, Json], where: Where) -> list[str] | None:
    if (given := value.get("type")) is None and "type" not in value:
        return None
    listed = given if isinstance(given, list) else [given]
    if not listed or not all(isinstance(item, str) and item in keywords.TYPES for item in listed):
        where.wrong("type", f"one of {', '.join(keywords.TYPES)}, or an array of them", given)
    found = [item for item in keywords.TYPES if item in listed]
    return [item for item in found if item != "integer" or "number" not in found]


def has_type(value: Json, name: str) -> bool:
    """Whether a JSON value has a type of JSON Schema."""
    match name:
        case "null":
            return value is None
        case "boolean":
            return isinstance(value, bool)
        case "string":
            return isinstance(value, str)
        case "array":
            return isinstance(value, list)
        case "object":
            return isinstance(value, dict)
        case "integer":
            return not isinstance(value, bool | str | list | dict) and value is not None and value % 1 == 0
        case _:
            return not isinstance(value, bool | str | list | dict) and value is not None


def _means_nothing(key: str, content: Json, value: Mapping[str, Json]) -> bool:
    """Whether an unsupported keyword restricts nothing here."""
    match key:
        case "not":
            return content is False
        case "if":
            return "then" not in value and "else" not in value
        case "contains":
            return value.get("minContains") == 0 and "maxContains" not in value
        case "dependentRequired" | "dependentSchemas" | "dependencies":
            return content == {} or (
                isinstance(content, dict) and all(part in ([], {}, True) for part in content.values())
            )
        case "nullable":
            return content is False
        case _:
            return False


def _joined(made: list[tuple[str, Any]]) -> Schema:
    """Keywords in their order; one that came twice is put into `allOf`."""
    schema: Schema = {}
    for key, content in made:
        if key == "allOf":
            schema.setdefault("allOf", []).extend(content)
        elif key in schema:
            schema.setdefault("allOf", []).append({key: content})
        else:
            schema[key] = content
    return schema
