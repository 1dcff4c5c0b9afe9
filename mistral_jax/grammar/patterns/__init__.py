"""Regular expressions as JavaScript, JSON Schema and Python write them, translated to the form that llguidance takes.

`parse` gives a tree or refuses by name; `translate` writes it for the whole text, with explicit character sets."""

from mistral_jax.grammar.patterns.translate import class_text, full_match, literal, search

__all__ = ["class_text", "full_match", "literal", "search"]
