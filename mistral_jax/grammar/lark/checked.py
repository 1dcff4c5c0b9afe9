"""Checks grammars that users write in Lark: text only, and within bounds.

Llguidance's Lark also names special tokens, embeds schemas, refers to other grammars and changes how tokens are chosen.
None of that is for users. `GrammarConstraint` keeps control tokens out whatever a grammar says; the check here refuses
by name.
"""

from __future__ import annotations

import re
from typing import NoReturn

from mistral_jax.grammar.grammar import GrammarError

MAX_BYTES = 65_536
"""Bytes of a grammar in Lark or GBNF."""

MAX_RULES = 1_000
"""Rules and terminals of a grammar."""

MAX_REPEAT = 10_000
"""Largest number of repetitions."""

MAX_INTERSECTIONS = 6
"""`&` and `~` in a grammar: the work of an intersection may double with each."""

_TOKEN = re.compile(
    r"""
    (?P<space>[ \t\r\n]+)
    | (?P<comment>(?:\#|//)[^\n]*)
    | (?P<string>"(?:[^"\\\n]++|\\.)*+"i?)
    | (?P<regex>/(?:[^/\\\n]++|\\.)++/[a-z]*)
    | (?P<directive>%[a-z]+)
    | (?P<special><[^<>\s]+>)
    | (?P<reference>@[A-Za-z0-9_-]+)
    | (?P<parameter>::)
    | (?P<name>[!?]*_?[A-Za-z][A-Za-z0-9_-]*)
    | (?P<number>[+-]?[0-9]+(?:\.(?!\.)[0-9]*)?)
    | (?P<operator>->|\.\.|[^"/])
    """,
    re.VERBOSE,
)
_ATTRIBUTES = ("capture", "lazy", "suffix")
_DIRECTIVES = {"%ignore", "%import", "%llguidance"}


def checked(text: str) -> str:
    """A user's grammar, unchanged.

    Raises:
      GrammarError: it has what only our own grammars may have, or exceeds a limit.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise GrammarError(f"The grammar has more than {MAX_BYTES:,} bytes.")
    rules = intersections = position = 0
    in_attributes = False
    before = ""
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:  # an unfinished string or expression
            _refuse(text, position, "a character that is unexpected here", text[position])
        position, token = found.end(), found[0]
        match found.lastgroup:
            case "space" | "comment":
                continue
            case "special":
                _refuse(text, found.start(), "a special token", token)
            case "reference":
                _refuse(text, found.start(), "a reference to another grammar", token)
            case "parameter":
                _refuse(text, found.start(), "a rule with parameters", token)
            case "directive":
                position = _directive(text, found)
            case "regex":
                _check_numbers(text, found.start(), token)
            case "number":
                if abs(float(token)) > MAX_REPEAT:
                    _refuse(text, found.start(), f"a number beyond {MAX_REPEAT:,}", token)
            case "name":
                if in_attributes and before in ("[", ",") and token not in _ATTRIBUTES:
                    _refuse(text, found.start(), "an attribute that cannot be held", token)
            case _:
                intersections += token in "&~"
                rules += token == ":"
                if token == "[":
                    in_attributes = True
                elif token == "]":
                    in_attributes = False
        before = token
    if rules > MAX_RULES:
        raise GrammarError(f"The grammar has {rules:,} rules; at most {MAX_RULES:,} are possible.")
    if intersections > MAX_INTERSECTIONS:
        raise GrammarError(f"The grammar has {intersections} `&` and `~`; at most {MAX_INTERSECTIONS} are possible.")
    return text


def _directive(text: str, found: re.Match[str]) -> int:
    """Checks a directive; returns where the text goes on."""
    if found[0] not in _DIRECTIVES:
        _refuse(text, found.start(), "a directive that is not for requests", found[0])
    if found[0] != "%llguidance":
        return found.end()
    options = re.compile(r"\s*\{\s*\}").match(text, found.end())
    if options is None:
        _refuse(text, found.start(), "options; only `%llguidance {}` is possible", found[0])
    return options.end()


def _check_numbers(text: str, position: int, pattern: str) -> None:
    for number in re.findall(r"\d{2,}", pattern):
        if len(number) > 6 or int(number) > MAX_REPEAT:
            _refuse(text, position, f"an expression with a number beyond {MAX_REPEAT:,}", pattern[:80])


def _refuse(text: str, position: int, what: str, quoted: str) -> NoReturn:
    line = text.count("\n", 0, position) + 1
    raise GrammarError(f"Line {line} of the grammar has {what}: `{quoted[:80]}`.")
