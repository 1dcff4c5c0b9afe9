"""Values for the schemas of an OpenAPI document: valid ones, and ones that are wrong in every way we know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hypothesis import strategies as st

Json = Any

TEXTS = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        (
            *("", " ", "default", "base", "auto", "none", "user", "text", "function", "null", "0", "-1", "1e400"),
            *("é🙂", "\x00", "\u202e\ufeff", "\ud7ff\ue000", "../../etc/passwd", "[INST]", "<tool_call>", "</s>"),
            *("{{ 7 * 7 }}", "%s%n", "^(a+)+$", 'start: "a"', 'root ::= "a"'),
            *("a" * 3000, "{" * 2000, "é" * 999, "1" * 400),
        )
    ),
)
NUMBERS = st.one_of(
    st.integers(-3, 300),
    st.sampled_from((2**31 - 1, 2**31, -(2**31) - 1, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400)),
    st.floats(-3, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from((0.0, -0.0, 5e-324, 1.7976931348623157e308, 1e-7)),
)
LEAVES = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
ANYTHING = st.recursive(
    LEAVES,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=6,
)


def nested(depth: int, *, objects: bool) -> Json:
    """Lists in lists, or objects in objects."""
    value: Json = 1
    for _ in range(depth):
        value = {"a": value} if objects else [value]
    return value


EXTREMES = st.one_of(
    st.builds(nested, st.sampled_from((30, 200, 900)), objects=st.booleans()),
    st.integers(100, 2000).map(lambda size: [1] * size),
    st.integers(100, 2000).map(lambda size: {f"k{index}": index for index in range(size)}),
    st.integers(1000, 40_000).map(lambda size: "a " * size),
)

SCHEMAS = st.sampled_from(
    (
        {"type": "object"},
        {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0}}, "required": ["a"]},
        {"type": "array", "items": {"enum": ["x", "y", None, 1]}, "maxItems": 3},
        {"$defs": {"n": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/n"}]}}, "$ref": "#/$defs/n"},
        {"type": "string", "pattern": "^(a|b)*$", "maxLength": 5},
        {"type": "string", "format": "date-time"},
        {"$ref": "http://127.0.0.1:9/schema.json"},
        {"$ref": "#/nowhere"},
        {"type": "object", "patternProperties": {"(a+)+$": {}}},
        {"not": {"type": "string"}},
        {"type": "number", "multipleOf": 1e-300},
        {"type": "array", "minItems": 10**9},
        {"type": "string", "minLength": 10**12},
        {"anyOf": [{"const": index} for index in range(300)]},
        {"enum": []},
        True,
        False,
    )
)
PATTERNS = st.sampled_from(
    ("[ab]{2,4}", "^(a+)+$", "(?<=a)b", "(a{1000}){1000}", r"\1(a)", "[", r"\p{Greek}+", "a*" * 40)
)
GRAMMARS = st.sampled_from(
    (
        *('root ::= "a" | "b"', "root ::= root root", "root ::= (" * 300 + '"a"' + ")" * 300, "root ::= x", "::="),
        *(
            'start: "a" | "b"',
            "start: start start",
            "start: /(a+)+/",
            'start: "a"~1..100000',
            'start: "a" | "b"\n' * 99,
        ),
    )
)
ROLES = ("user", "assistant", "system", "developer", "tool", "function")
MESSAGES = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(ROLES), "content": st.text(max_size=20)}), min_size=1, max_size=4
)

HINTS: Mapping[str, st.SearchStrategy[Json]] = {
    "model": st.sampled_from(("default", "base", "no-such-model")),
    "messages": st.one_of(MESSAGES, st.text(max_size=20).map(lambda text: [{"role": "user", "content": text}])),
    "max_tokens": st.integers(1, 12),
    "max_completion_tokens": st.integers(1, 12),
    "n_predict": st.integers(-2, 12),
    "min_tokens": st.integers(0, 5),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "typical_p": st.floats(0.1, 1),
    "repetition_penalty": st.floats(0.5, 2),
    "repeat_penalty": st.floats(0.5, 2),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "seed": st.integers(0, 2**31),
    "n": st.integers(1, 3),
    "n_cmpl": st.integers(1, 2),
    "best_of": st.integers(1, 4),
    "logprobs": st.one_of(st.booleans(), st.integers(0, 5)),
    "top_logprobs": st.integers(0, 5),
    "n_probs": st.integers(0, 5),
    "prompt_logprobs": st.integers(0, 5),
    "stop": st.one_of(st.text(min_size=1, max_size=3), st.lists(st.text(min_size=1, max_size=3), max_size=4)),
    "stop_token_ids": st.lists(st.integers(0, 250), max_size=3),
    "allowed_token_ids": st.lists(st.integers(3, 250), min_size=1, max_size=9),
    "logit_bias": st.dictionaries(st.integers(0, 250).map(str), st.floats(-100, 100), max_size=4),
    "priority": st.integers(-5, 5),
    "truncate_prompt_tokens": st.integers(-1, 20),
    "reasoning_effort": st.sampled_from(("none", "low", "high")),
    "prompt": st.one_of(
        st.text(max_size=30), st.lists(st.text(max_size=9), min_size=1, max_size=3), st.lists(st.integers(0, 250))
    ),
    "input": st.one_of(st.text(max_size=30), st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=3)),
    "tokens": st.lists(st.integers(0, 250), max_size=9),
    "encoding_format": st.sampled_from(("float", "base64")),
    "pooling": st.sampled_from(("mean", "last")),
    "dimensions": st.integers(1, 6),
    "tools": st.lists(
        st.builds(
            lambda name, parameters: {"type": "function", "function": {"name": name, "parameters": parameters}},
            st.sampled_from(("f", "get_weather", "a-b")),
            SCHEMAS,
        ),
        max_size=3,
        unique_by=lambda tool: tool["function"]["name"],
    ),
    "tool_choice": st.sampled_from(
        ("auto", "none", "required", {"type": "function", "function": {"name": "get_weather"}})
    ),
    "response_format": st.one_of(
        st.just({"type": "json_object"}),
        SCHEMAS.map(lambda schema: {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}),
    ),
    "json_schema": SCHEMAS,
    "guided_json": SCHEMAS,
    "schema": SCHEMAS,
    "parameters": SCHEMAS,
    "regex": PATTERNS,
    "guided_regex": PATTERNS,
    "grammar": GRAMMARS,
    "guided_grammar": GRAMMARS,
    "ebnf": GRAMMARS,
    "guided_choice": st.lists(TEXTS, min_size=1, max_size=4),
    "lora_name": st.sampled_from(("poet", "no-such-adapter", "../x")),
    "chat_template_kwargs": st.dictionaries(st.sampled_from(("mood", "tokenize", "x")), LEAVES, max_size=3),
}
"""Values that are mostly valid, for names that stand for the same everywhere. Schemas do not tell, for example, that a
temperature is at most 2."""


class Values:
    """Strategies for the schemas of a document."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._schemas = document["components"]["schemas"]
        self._made: dict[str, st.SearchStrategy[Json]] = {}

    def schema(self, name: str) -> Mapping[str, Any]:
        """A schema by its name."""
        return self._schemas[name]

    def of(self, schema: Mapping[str, Any], name: str = "") -> st.SearchStrategy[Json]:
        """Values that match a schema.

        Args:
          name: of the property that has it.
        """
        if name in HINTS:
            return HINTS[name]
        if "$ref" in schema:
            target = schema["$ref"].rpartition("/")[2]
            if target not in self._made:
                self._made[target] = st.deferred(lambda: self.of(self._schemas[target]))
            return self._made[target]
        for several in ("anyOf", "oneOf"):
            if several in schema:
                return st.one_of([self.of(option) for option in schema[several]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if "const" in schema:
            return st.just(schema["const"])
        kinds: dict[str, Callable[[], st.SearchStrategy[Json]]] = {
            "string": lambda: TEXTS,
            "integer": lambda: st.integers(-3, 300),
            "number": lambda: st.one_of(st.integers(-3, 300), st.floats(-3, 3)),
            "boolean": st.booleans,
            "null": st.none,
            "array": lambda: self._list(schema),
            "object": lambda: self._object(schema),
        }
        return kinds[schema["type"]]() if "type" in schema else ANYTHING

    def _list(self, schema: Mapping[str, Any]) -> st.SearchStrategy[Json]:
        if "prefixItems" in schema:
            return st.tuples(*(self.of(item) for item in schema["prefixItems"])).map(list)
        return st.lists(self.of(schema.get("items") or {}), max_size=3)

    def _object(self, schema: Mapping[str, Any]) -> st.SearchStrategy[Json]:
        properties = schema.get("properties", {})
        if not properties:
            inner = schema.get("additionalProperties")
            return st.dictionaries(TEXTS, self.of(inner if isinstance(inner, Mapping) else {}), max_size=3)
        required = set(schema.get("required", ()))
        values = {name: self.of(inner, name) for name, inner in properties.items()}
        optional = sorted(properties.keys() - required)
        return st.tuples(
            st.fixed_dictionaries({name: values[name] for name in sorted(required)}),
            some_of(optional).flatmap(lambda names: st.fixed_dictionaries({name: values[name] for name in names})),
        ).map(lambda parts: parts[0] | parts[1])


def some_of(names: Sequence[str], most: int = 4) -> st.SearchStrategy[list[str]]:
    """A few of the names."""
    if not names:
        return st.just([])
    return st.lists(st.sampled_from(names), max_size=min(most, len(names)), unique=True)


def _change_container(draw: Callable[..., Any], value: Json) -> Json:
    if isinstance(value, dict):
        match draw(st.sampled_from(("drop", "add", "rename", "null"))):
            case "drop" if value:
                value.pop(draw(st.sampled_from(sorted(value))))
            case "rename" if value:
                value[draw(TEXTS)] = value.pop(draw(st.sampled_from(sorted(value))))
            case "null" if value:
                value[draw(st.sampled_from(sorted(value)))] = None
            case _:
                value[draw(TEXTS)] = draw(ANYTHING)
        return value
    match draw(st.sampled_from(("double", "empty", "append"))):
        case "double":
            return value + value
        case "empty":
            return []
        case _:
            return [*value, draw(ANYTHING)]


@st.composite
def damaged(draw: Callable[..., Any], value: Json) -> Json:
    """A value with something wrong at some place in it."""
    if isinstance(value, dict | list) and value and draw(st.integers(0, 3)):
        places = sorted(value) if isinstance(value, dict) else range(len(value))
        place = draw(st.sampled_from(places))
        copy = dict(value) if isinstance(value, dict) else list(value)
        copy[place] = draw(damaged(value[place]))
        return copy
    match draw(st.sampled_from(("any", "number", "text", "wrap", "as text", "container", "extreme"))):
        case "any":
            return draw(ANYTHING)
        case "number":
            return draw(NUMBERS)
        case "wrap":
            return [value]
        case "as text":
            return str(value)
        case "container" if isinstance(value, dict | list):
            return _change_container(draw, value.copy())
        case "extreme":
            return draw(EXTREMES)
        case _:
            return draw(TEXTS)
