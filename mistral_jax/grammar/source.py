"""From our grammars to llguidance's: a list of grammars, the first of which is the one to match."""

from __future__ import annotations

import json
from typing import Any

import llguidance

from mistral_jax.grammar.grammar import Grammar, GrammarError

START = "start"
"""Name of the grammar to match, for references to it."""


def grammars_of(grammar: Grammar) -> list[dict[str, Any]]:
    """The grammars that llguidance compiles.

    Raises:
      GrammarError: see `GrammarCompiler.compile`.
    """
    parts = [_one(name, part) for name, part in grammar.parts]
    return [_one(START, grammar), *parts]


def _one(name: str, grammar: Grammar) -> dict[str, Any]:
    match grammar.kind:
        case "json_schema":
            try:
                schema = json.loads(grammar.text)
            except ValueError as error:
                raise GrammarError(f"The schema is no JSON: {error}.") from error
            if schema is True:
                schema = {}
            options = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
            return {"name": name, "json_schema": {**schema, "x-guidance": options}}
        case "json_object":
            return {"name": name, "json_schema": {"type": "object"}}
        case "regex":
            return {"name": name, "lark_grammar": f"start: /{llguidance.regex_to_lark(grammar.text)}/"}
        case "choice":
            return {"name": name, "lark_grammar": "start: " + " | ".join(map(json.dumps, grammar.choices))}
        case "lark" | "trusted_lark":
            return {"name": name, "lark_grammar": grammar.text}
        case "gbnf":
            return {"name": name, "lark_grammar": llguidance.grammar_from("gbnf", grammar.text)}
