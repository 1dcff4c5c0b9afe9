"""Parses regular expressions: what JavaScript, Python and Rust have in common; the rest is refused by name."""

from __future__ import annotations

import re
from typing import NoReturn

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.patterns.characters import (
    ANY,
    ANY_BUT_LINE_ENDS,
    MAX,
    class_escape,
    single,
    union,
)
from mistral_jax.grammar.patterns.tree import Anchor, Characters, Group, Node, Repeat

MAX_LENGTH = 8_192
"""Characters of an expression."""

MAX_DEPTH = 100
"""Groups inside groups."""

MAX_REPEAT = 10_000
"""Largest number in `{1,10000}`."""

_CONTROLS = {"t": 9, "n": 10, "v": 11, "f": 12, "r": 13}
_REPEAT = re.compile(r"\{(\d+)(,?)(\d*)\}")
_HEX = {"x": re.compile(r"[0-9A-Fa-f]{2}"), "u": re.compile(r"[0-9A-Fa-f]{4}|\{[0-9A-Fa-f]{1,6}\}")}
_LOW_SURROGATE = re.compile(r"\\u([Dd][C-Fc-f][0-9A-Fa-f]{2})")
_PROPERTY = re.compile(r"\{\^?([A-Za-z_]+)(?:=([A-Za-z_]+))?\}|([LMNPSZC])")
_NAME = re.compile(r"\?P?<[A-Za-z_$][\w$]*>", re.ASCII)
_FLAGS = re.compile(r"\?([is]+)([:)])")


def parse(pattern: str, *, flags: bool) -> Group:
    """The tree of an expression.

    Args:
      pattern: The expression.
      flags: Whether `(?i)` and `(?s)` are known, as in Python and Rust but not in JSON Schema, and `\\A` and `\\Z`.

    Raises:
      GrammarError: it is not valid, exceeds a limit, or has what cannot be held, which the message names.
    """
    if len(pattern) > MAX_LENGTH:
        raise GrammarError(
            f"The regular expression has {len(pattern):,} characters; at most {MAX_LENGTH:,} are possible."
        )
    return _Parser(pattern, flags).whole()


class _Parser:
    def __init__(self, pattern: str, flags: bool) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._flags = flags
        self._dot = ANY_BUT_LINE_ENDS

    def whole(self) -> Group:
        ignores_case = ""
        if self._flags and (leading := re.match(r"\(\?([is]+)\)", self._text)):
            self._at = leading.end()
            self._dot = ANY if "s" in leading[1] else self._dot
            ignores_case = "i" if "i" in leading[1] else ""
        group = self._group(ignores_case)
        if self._at < len(self._text):
            self._refuse("an unmatched `)`")
        return group

    def _group(self, flags: str = "") -> Group:
        alternatives, sequence = list[tuple[Node, ...]](), list[Node]()
        while (character := self._peek()) not in ("", ")"):
            if character == "|":
                self._at += 1
                alternatives.append(tuple(sequence))
                sequence = []
            else:
                sequence.append(self._repeated(self._atom()))
        return Group((*alternatives, tuple(sequence)), flags)

    def _repeated(self, node: Node) -> Node:
        character = self._peek()
        if character and character in "*+?":
            self._at += 1
            least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}[character]
        elif found := _REPEAT.match(self._text, self._at):
            self._at = found.end()
            least = int(found[1][:9])
            most = least if not found[2] else int(found[3][:9]) if found[3] else None
            if max(least, most or 0) > MAX_REPEAT:
                self._refuse(f"more than {MAX_REPEAT:,} repetitions", found[0])
            if most is not None and most < least:
                self._refuse("a repetition whose numbers are out of order", found[0])
        else:
            return node
        if isinstance(node, Anchor):
            self._refuse("a repeated anchor")
        if self._peek() == "?":  # lazy: the same texts match
            self._at += 1
        elif self._peek() == "+":
            self._refuse("a possessive quantifier")
        elif self._peek() == "*":
            self._refuse("a repeated quantifier")
        return Repeat(node, least, most)

    def _atom(self) -> Node:
        character = self._take()
        match character:
            case "(":
                return self._parenthesis()
            case "[":
                return self._class()
            case "\\":
                return self._escape()
            case ".":
                return self._dot
            case "^":
                return Anchor("start")
            case "$":
                return Anchor("end")
            case "*" | "+" | "?":
                self._refuse(f"`{character}` with nothing to repeat")
            case _:
                return single(ord(character))

    def _parenthesis(self) -> Group:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._refuse(f"groups in more than {MAX_DEPTH} levels")
        flags, dot = "", self._dot
        if self._peek() == "?":
            if self._text.startswith("?:", self._at):
                self._at += 2
            elif name := _NAME.match(self._text, self._at):
                self._at = name.end()
            elif self._flags and (found := _FLAGS.match(self._text, self._at)) and found[2] == ":":
                self._at = found.end()
                flags = "i" if "i" in found[1] else ""
                self._dot = ANY if "s" in found[1] else dot
            else:
                self._refuse_group()
        group = self._group(flags)
        if self._peek() != ")":
            self._refuse("an unmatched `(`")
        self._at += 1
        self._depth -= 1
        self._dot = dot
        return group

    def _refuse_group(self) -> NoReturn:
        for start, what in (
            ("?=", "a lookahead"),
            ("?!", "a lookahead"),
            ("?<=", "a lookbehind"),
            ("?<!", "a lookbehind"),
            ("?P=", "a backreference"),
            ("?>", "an atomic group"),
            ("?(", "a conditional group"),
            ("?#", "a comment"),
        ):
            if self._text.startswith(start, self._at):
                self._refuse(what, f"({start}")
        self._refuse("a flag or group", self._text[self._at - 1 : self._at + 4])

    def _escape(self) -> Node:
        start = self._at - 1
        character = self._peek()
        if character in ("b", "B"):
            self._refuse("a word boundary", f"\\{character}")
        if (character.isdigit() and character != "0") or character == "k":
            self._refuse("a backreference", f"\\{character}")
        if self._flags and character in ("A", "Z", "z"):
            self._at += 1
            return Anchor("start" if character == "A" else "end")
        return self._character_escape(start)

    def _character_escape(self, start: int) -> Characters:
        """After a backslash, in a class or outside: a character or a set of them."""
        character = self._take()
        if character in "dDwWsS":
            return class_escape(character)
        if character in _CONTROLS:
            return single(_CONTROLS[character])
        if character in "pP":
            return self._property(negated=character == "P")
        if character == "0" and not self._peek().isdigit():
            return single(0)
        if character == "c" and re.match("[A-Za-z]", self._peek()):
            return single(ord(self._take()) % 32)
        if character in _HEX and (found := _HEX[character].match(self._text, self._at)):
            self._at = found.end()
            return single(self._paired(int(found[0].strip("{}"), 16)))
        if character.isascii() and (character.isalnum() or character == "_"):
            self._refuse("an escape", self._text[start : start + 2])
        return single(ord(character))

    def _paired(self, point: int) -> int:
        """A code point of one `\\u` escape or of two, for the halves of a surrogate pair."""
        if 0xD800 <= point < 0xDC00 and (low := _LOW_SURROGATE.match(self._text, self._at)):
            self._at = low.end()
            return 0x10000 + (point - 0xD800) * 0x400 + int(low[1], 16) - 0xDC00
        if 0xD800 <= point < 0xE000 or point > MAX:
            self._refuse("half of a surrogate pair" if point <= MAX else "a character beyond Unicode")
        return point

    def _property(self, *, negated: bool) -> Characters:
        found = _PROPERTY.match(self._text, self._at)
        if found is None:
            self._refuse("a Unicode property")
        self._at = found.end()
        name = found[3] or (f"{found[1]}={found[2]}" if found[2] else found[1])
        items = (f"\\{'P' if negated != ('^' in found[0]) else 'p'}{{{name}}}",)
        return Characters((), (), items, items)

    def _class(self) -> Characters:
        negated = self._peek() == "^"
        self._at += negated
        parts, escapes = list[Characters](), set[str]()
        while (character := self._take(missing="a class without its `]`")) != "]":
            if character == "[" and (self._peek() in (":", ".", "=") or self._rust_syntax()):
                self._refuse("a class in a class")
            if (character + self._peek()) in ("&&", "--", "~~", "||"):
                self._refuse("an operation on classes", character * 2)
            if character == "\\":
                escapes.add(self._peek())
            low = self._class_member(character)
            if self._peek() != "-" or self._text[self._at + 1 : self._at + 2] in ("]", ""):
                parts.append(low)
                continue
            self._at += 1
            high = self._class_member(self._take())
            parts.append(self._range(low, high))
        inner, outer = union(*(part.inner for part in parts)), union(*(part.outer for part in parts))
        inner_items = tuple(item for part in parts for item in part.inner_items)
        outer_items = tuple(item for part in parts for item in part.outer_items)
        everything = any({letter, letter.upper()} <= escapes for letter in "dws")  # `[\\s\\S]`, as all dialects read it
        if everything or not parts:  # `[]` is nothing
            return Characters((), ()) if everything == negated else ANY
        return Characters(inner, outer, inner_items, outer_items, negated)

    def _rust_syntax(self) -> bool:
        """Whether `[` in a class begins a class for Rust and newer JavaScript; elsewhere it is a character."""
        return self._flags and self._peek() == "^"

    def _class_member(self, character: str) -> Characters:
        if character != "\\":
            return single(ord(character))
        if self._peek() == "b":
            self._at += 1
            return single(8)
        return self._character_escape(self._at - 1)

    def _range(self, low: Characters, high: Characters) -> Characters:
        ends = [*low.inner, *high.inner]
        if len(ends) != 2 or any(first != last for first, last in ends) or low.inner_items or high.inner_items:
            self._refuse("a range between sets of characters")
        if ends[0] > ends[1]:
            self._refuse("a range out of order")
        ranges = ((ends[0][0], ends[1][0]),)
        return Characters(ranges, ranges)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, missing: str = "an incomplete escape") -> str:
        character = self._peek()
        if not character:
            self._refuse(missing)
        if 0xD800 <= ord(character) < 0xE000:
            self._refuse("half of a surrogate pair")
        self._at += 1
        return character

    def _refuse(self, what: str, quoted: str = "") -> NoReturn:
        shown = f" `{quoted}`" if quoted else ""
        raise GrammarError(
            f"The regular expression has {what}{shown} near character {self._at}, which cannot be held. "
            "Possible are characters, classes, groups, alternatives, quantifiers, and ^ and $ at its ends."
        )
