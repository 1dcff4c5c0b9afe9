"""Grammars that completions must match: JSON schemas, regular expressions, Lark and GBNF, compiled by llguidance to one
mask of allowed tokens for each step. No JAX, no HTTP."""
