"""What a completion must match, as plain data: a JSON schema, a regular expression, a list of texts, or a grammar."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["json_schema", "json_object", "regex", "choice", "lark", "gbnf", "trusted_lark"]


class GrammarError(ValueError):
    """A grammar is not valid, asks for what we cannot hold, or exceeds a limit. The message is for the user."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """A grammar as it was asked for; nothing is checked before `GrammarCompiler.compile`.

    Made by the class methods. Equal grammars are equal objects, so that a cache can use them as keys.
    """

    kind: Kind
    text: str = ""
    """The schema, expression or grammar."""
    choices: tuple[str, ...] = ()
    """The texts of `choice`."""
    strict: bool = False
    """`strict` of a JSON schema, as OpenAI names it. It changes nothing here: every schema is held in full."""
    parts: tuple[tuple[str, Grammar], ...] = ()
    """Grammars that `trusted_lark` refers to as @name."""

    @classmethod
    def json_schema(cls, schema: str, *, strict: bool = False) -> Grammar:
        """A JSON value that is valid for a schema, given as JSON text."""
        return cls("json_schema", schema, strict=strict)

    @classmethod
    def json_object(cls) -> Grammar:
        """Any JSON object."""
        return cls("json_object")

    @classmethod
    def regex(cls, pattern: str) -> Grammar:
        """A text that a regular expression matches as a whole."""
        return cls("regex", pattern)

    @classmethod
    def choice(cls, choices: Iterable[str]) -> Grammar:
        """One of several texts."""
        return cls("choice", choices=tuple(choices))

    @classmethod
    def lark(cls, grammar: str) -> Grammar:
        """A grammar in llguidance's dialect of Lark, with the rule `start`; of text only, without special tokens."""
        return cls("lark", grammar)

    @classmethod
    def gbnf(cls, grammar: str) -> Grammar:
        """A grammar in llama.cpp's GBNF, with the rule `root`."""
        return cls("gbnf", grammar)

    @classmethod
    def trusted(cls, lark: str, parts: Mapping[str, Grammar] | None = None) -> Grammar:
        """A grammar of our own, never of a user: it may name control tokens by id, such as `<[5]>`.

        Args:
          lark: The grammar in Lark. Unlike other grammars it is matched as it stands, also at the start of a text
            whose first space is dropped: write `" "?` where the vocabulary puts one.
          parts: What it refers to as @name. Parts from a user stay untrusted: they cannot contain control tokens.
        """
        return cls("trusted_lark", lark, parts=tuple((parts or {}).items()))
