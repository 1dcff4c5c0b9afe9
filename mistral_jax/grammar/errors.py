"""Llguidance's error messages in our words: short, with the keyword they are about."""

from __future__ import annotations

_TOO_MUCH = "it exceeds a limit on the work for one grammar. Make it simpler"

_KNOWN = (
    ("NoExtension", "No text matches the grammar"),
    ("No token of the vocabulary", "No text in the model's vocabulary matches the grammar"),
    ("Unsatisfiable schema", "No value matches the schema: {reason}"),
    ("are not disjoint", "The schema's `patternProperties` cannot be held: one name may match two of its patterns"),
    ("disjoint", "The schema's `patternProperties` cannot be held: it is not certain that its patterns never meet"),
    (
        "min/maxProperties only supported",
        "The schema's `minProperties` and `maxProperties` cannot be held beside properties that are not required",
    ),
    (
        "circular references with sibling keys",
        "The schema's `$ref` cannot be held: it refers back to itself beside other keywords",
    ),
    ("determine if regex is empty", "The schema's `pattern` cannot be held: " + _TOO_MUCH),
    ("schema too large", "The schema's `allOf` or `anyOf` cannot be held: they multiply to too many cases"),
    ("stack level exceeded", "The schema's `allOf` cannot be held: it is nested too deeply"),
    ("fuel", "The grammar cannot be compiled: " + _TOO_MUCH),
    ("too many expressions", "The grammar cannot be compiled: " + _TOO_MUCH),
    ("too large", "The grammar cannot be compiled: " + _TOO_MUCH),
    ("Too many items", "The grammar cannot be compiled: " + _TOO_MUCH),
)
"""What a message contains, and what we say."""


def compile_error(message: str) -> str:
    """What to tell the user about a grammar that cannot be compiled.

    Args:
      message: Llguidance's message.
    """
    reason = without_state(message)
    for part, ours in _KNOWN:
        if part in message:
            return ours.format(reason=reason.partition("Unsatisfiable schema:")[2].strip()) + "."
    return f"The grammar cannot be compiled: {reason}"


def without_state(message: str) -> str:
    """The first line of a message, without the parser's state."""
    return message.strip().partition("\n")[0].strip()[:300]
