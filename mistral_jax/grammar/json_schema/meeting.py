"""Asks llguidance whether patterns have a text in common."""

from __future__ import annotations

import json
from collections.abc import Sequence

from llguidance import LLMatcher


def never_meet(patterns: Sequence[str]) -> bool:
    """Whether it is certain that no name matches two of some canonical patterns."""
    schema = {"type": "object", "patternProperties": {pattern: {"type": "null"} for pattern in patterns}}
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    return "disjoint" not in LLMatcher.validate_grammar(grammar)
