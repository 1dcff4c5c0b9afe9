"""From our grammars to llguidance's: a list of grammars, the first of which is the one to match."""

from __future__ import annotations

from typing import Any

from mistral_jax.grammar.grammar import Grammar, GrammarError
from mistral_jax.grammar.json_schema import canonical
from mistral_jax.grammar.lark import checked, gbnf_to_lark
from mistral_jax.grammar.limits import MAX_CHOICE_BYTES, MAX_CHOICES
from mistral_jax.grammar.patterns import full_match, literal

_SCHEMA_OPTIONS = {
    # One way to write each value: a model cannot waste its tokens in whitespace without end, and more of the text is
    # forced, which costs no sampling.
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    # No `\\u0061`: names that are not listed could be written as if they were others.
    "json_allowed_escapes": 'nrbtf\\"',
}
_OBJECT_OPTIONS = {
    # Where JSON allows whitespace: nothing, a space, or a new line with its indentation, as models write it.
    "whitespace_pattern": r"\x20|\x0A(?:\x20{0,40}|\x09{0,10})",
    "json_allowed_escapes": 'nrbtf\\"',
}

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
            return {"name": name, "json_schema": {**canonical(grammar.text), "x-guidance": _SCHEMA_OPTIONS}}
        case "json_object":
            return {"name": name, "json_schema": {"type": "object", "x-guidance": _OBJECT_OPTIONS}}
        case "regex":
            return {"name": name, "lark_grammar": f"start: /{full_match(grammar.text)}/"}
        case "choice":
            return {"name": name, "lark_grammar": _choice(grammar.choices)}
        case "lark":
            return {"name": name, "lark_grammar": checked(grammar.text)}
        case "gbnf":
            return {"name": name, "lark_grammar": gbnf_to_lark(grammar.text)}
        case "trusted_lark":
            return {"name": name, "lark_grammar": grammar.text}


def _choice(choices: tuple[str, ...]) -> str:
    if not choices:
        raise GrammarError("The list of choices is empty.")
    if len(choices) > MAX_CHOICES:
        raise GrammarError(f"There are {len(choices):,} choices; at most {MAX_CHOICES:,} are possible.")
    if (size := sum(len(choice.encode("utf-8", "replace")) for choice in choices)) > MAX_CHOICE_BYTES:
        raise GrammarError(f"The choices have {size:,} bytes together; at most {MAX_CHOICE_BYTES:,} are possible.")
    # One expression for all, so that none can hide another that begins like it.
    return "start: /" + "|".join(map(literal, choices)) + "/" if any(choices) else 'start: ""'
