"""Parses GBNF, the grammars of llama.cpp."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NoReturn

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.lark.checked import MAX_BYTES, MAX_REPEAT, MAX_RULES

MAX_DEPTH = 50
"""Groups inside groups."""

MAX_NODES = 8_000
"""Literals, classes, names and groups of a grammar."""

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_REPEAT = re.compile(r"\{\s*(\d+)\s*(,?)\s*(\d*)\s*\}")
_ESCAPES = {
    "n": "\n",
    "r": "\r",
    "t": "\t",
    '"': '"',
    "\\": "\\",
    "[": "[",
    "]": "]",
    "-": "-",
    "/": "/",
    "^": "^",
    "'": "'",
}
_HEX = {"x": 2, "u": 4, "U": 8}


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class Class:
    """One character of a set, or outside of it."""

    ranges: tuple[tuple[int, int], ...]
    negated: bool


@dataclass(frozen=True, slots=True)
class Reference:
    name: str


@dataclass(frozen=True, slots=True)
class Repeat:
    node: Node
    least: int
    most: int | None


@dataclass(frozen=True, slots=True)
class Sequence:
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Alternatives:
    options: tuple[Sequence, ...]


type Node = Literal | Class | Reference | Repeat | Sequence | Alternatives


def parse(text: str) -> dict[str, Alternatives]:
    """The rules by their names.

    Raises:
      GrammarError: the grammar is not valid, names special tokens, or exceeds a limit.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise GrammarError(f"The grammar has more than {MAX_BYTES:,} bytes.")
    rules = _Parser(text).rules()
    if "root" not in rules:
        raise GrammarError("The grammar has no rule `root ::= ...`, which is where GBNF begins.")
    if len(rules) > MAX_RULES:
        raise GrammarError(f"The grammar has {len(rules):,} rules; at most {MAX_RULES:,} are possible.")
    return rules


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._nodes = 0

    def rules(self) -> dict[str, Alternatives]:
        found: dict[str, Alternatives] = {}
        self._skip(lines=True)
        while self._at < len(self._text):
            name = self._name()
            self._skip(lines=False)
            if not self._text.startswith("::=", self._at):
                self._refuse("`::=` was expected")
            self._at += 3
            self._skip(lines=True)
            if name in found:
                self._refuse(f"the rule {name!r} is defined twice")
            found[name] = self._alternatives(nested=False)
            if self._at < len(self._text) and self._text[self._at] not in "\r\n":
                self._refuse(f"{self._text[self._at]!r} is unexpected")
            self._skip(lines=True)
        return found

    def _alternatives(self, *, nested: bool) -> Alternatives:
        options = [self._sequence(nested)]
        while True:
            before = self._at
            self._skip(lines=True)  # a rule may go on with `|` on the next line
            if self._peek() != "|":
                self._at = before
                return Alternatives(tuple(options))
            self._at += 1
            self._skip(lines=True)
            options.append(self._sequence(nested))

    def _sequence(self, nested: bool) -> Sequence:
        nodes: list[Node] = []
        while (character := self._peek()) and character not in "|)\r\n":
            nodes.append(self._repeated(self._part(character)))
            self._skip(lines=nested)
        return Sequence(tuple(nodes))

    def _part(self, character: str) -> Node:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._refuse(f"more than {MAX_NODES:,} parts")
        if character == '"':
            return self._literal()
        if character == "[":
            return self._class()
        if character == "(":
            return self._group()
        if character == ".":
            self._at += 1
            return Class(((0, 0x10FFFF),), negated=False)
        if character in "<!":
            self._refuse("special tokens are not for requests")
        return Reference(self._name())

    def _group(self) -> Alternatives:
        self._at += 1
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"groups in more than {MAX_DEPTH} levels")
        self._skip(lines=True)
        made = self._alternatives(nested=True)
        self._skip(lines=True)
        if self._peek() != ")":
            self._refuse("`)` was expected")
        self._at += 1
        self._depth -= 1
        return made

    def _repeated(self, node: Node) -> Node:
        while True:
            before = self._at
            self._skip(lines=False)
            character = self._peek()
            if character and character in "*+?":
                self._at += 1
                node = Repeat(node, int(character == "+"), 1 if character == "?" else None)
            elif found := _REPEAT.match(self._text, self._at):
                self._at = found.end()
                least = int(found[1][:9])
                most = least if not found[2] else int(found[3][:9]) if found[3] else None
                if max(least, most or 0) > MAX_REPEAT:
                    self._refuse(f"at most {MAX_REPEAT:,} repetitions are possible")
                if most is not None and most < least:
                    self._refuse("the numbers of a repetition are out of order")
                node = Repeat(node, least, most)
            else:
                self._at = before
                return node

    def _literal(self) -> Literal:
        self._at += 1
        characters = list[str]()
        while self._peek() != '"':
            characters.append(self._character())
        self._at += 1
        return Literal("".join(characters))

    def _class(self) -> Class:
        self._at += 1
        negated = self._peek() == "^"
        self._at += negated
        ranges = list[tuple[int, int]]()
        while self._peek() != "]":
            low = high = ord(self._character())
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                high = ord(self._character())
            if high < low:
                self._refuse("a range of characters is out of order")
            ranges.append((low, high))
        self._at += 1
        return Class(tuple(ranges), negated)

    def _character(self) -> str:
        """One character of a literal or a class."""
        character = self._peek()
        if not character:
            self._refuse("a literal or a class is not finished")
        self._at += 1
        if character != "\\":
            if 0xD800 <= ord(character) < 0xE000:
                self._refuse("half of a surrogate pair")
            return character
        escape = self._peek()
        self._at += 1
        if escape in _HEX:
            digits = self._text[self._at : self._at + _HEX[escape]]
            if re.fullmatch(f"[0-9A-Fa-f]{{{_HEX[escape]}}}", digits) is None:
                self._refuse(f"`\\{escape}` needs {_HEX[escape]} hexadecimal digits")
            point = int(digits, 16)
            if point > 0x10FFFF or 0xD800 <= point < 0xE000:
                self._refuse(f"`\\{escape}{digits}` is no character")
            self._at += len(digits)
            return chr(point)
        if escape not in _ESCAPES:
            self._refuse(f"the escape `\\{escape}` is not known")
        return _ESCAPES[escape]

    def _name(self) -> str:
        found = _NAME.match(self._text, self._at)
        if found is None:
            self._refuse("a name was expected")
        self._at = found.end()
        return found[0]

    def _skip(self, *, lines: bool) -> None:
        """Skips spaces and comments, and ends of lines with `lines`."""
        pattern = re.compile(r"(?:[ \t\r\n]|#[^\r\n]*)*" if lines else r"(?:[ \t]|#[^\r\n]*)*")
        found = pattern.match(self._text, self._at)
        assert found is not None
        self._at = found.end()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _refuse(self, what: str) -> NoReturn:
        line = self._text.count("\n", 0, self._at) + 1
        raise GrammarError(f"Line {line} of the grammar: {what}.")
