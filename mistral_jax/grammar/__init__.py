"""Grammars that completions must match: JSON schemas, regular expressions, Lark and GBNF, compiled by llguidance to one
mask of allowed tokens for each step. No JAX, no HTTP.

`Grammar` is what was asked for, `GrammarCompiler.compile(...).start(...)` gives a `Constraint`."""
