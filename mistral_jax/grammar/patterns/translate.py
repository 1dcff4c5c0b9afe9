"""Writes regular expressions for llguidance: in Rust's syntax, for the whole text, with explicit character sets.

An expression of JSON Schema is searched for anywhere in a text; here that becomes `.*` at each end without an anchor.
Nothing in the result depends on a dialect: neither `.`, nor `\\d`, nor what `$` means before a line's end.
"""

from __future__ import annotations

from collections.abc import Iterable

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.patterns.characters import complement, meet, union
from mistral_jax.grammar.patterns.parse import parse
from mistral_jax.grammar.patterns.tree import Anchor, Characters, Group, Node, Ranges, Repeat

_ANYTHING = "(?s:.)*"


def full_match(pattern: str) -> str:
    """For texts that match as a whole. `(?i)`, `(?s)` and anchors at the ends are known.

    Raises:
      GrammarError: see `parse`.
    """
    return _Writer(()).alternatives(parse(pattern, flags=True), left="", right="")


def search(pattern: str, *, without: Ranges = ()) -> str:
    """For texts in which the expression is found, as JSON Schema's `pattern` demands.

    Args:
      pattern: The expression.
      without: Characters that texts cannot have.

    Raises:
      GrammarError: see `parse`.
    """
    return _Writer(without).alternatives(parse(pattern, flags=False), left=_ANYTHING, right=_ANYTHING)


def class_text(ranges: Iterable[tuple[int, int]], *, negated: bool) -> str:
    """One character of some ranges of code points, or outside of them."""
    inner = union(tuple(ranges))
    return _Writer(()).characters(Characters(inner, inner, negated=negated))


def literal(text: str) -> str:
    """The text itself.

    Raises:
      GrammarError: it has half of a surrogate pair, which no text can have.
    """
    if any(0xD800 <= ord(character) < 0xE000 for character in text):
        raise GrammarError("A text has half of a surrogate pair, which cannot be written.")
    return "".join(_point(ord(character)) for character in text)


class _Writer:
    def __init__(self, without: Ranges) -> None:
        self._without = without

    def alternatives(self, group: Group, *, left: str | None, right: str | None) -> str:
        """A group.

        Args:
          group: The group.
          left: What precedes an alternative that does not begin with `^`; None: other nodes precede it, and `^` is not
            possible.
          right: The same for its end and `$`.
        """
        written = [self._sequence(list(nodes), left, right) for nodes in group.alternatives]
        return f"(?{group.flags}:{'|'.join(written)})"

    def _sequence(self, nodes: list[Node], left: str | None, right: str | None) -> str:
        while left is not None and nodes and nodes[0] == Anchor("start"):
            del nodes[0]
            left = ""
        while right is not None and nodes and nodes[-1] == Anchor("end"):
            del nodes[-1]
            right = ""
        before, after, parts = left or "", right or "", list[str]()
        for i, node in enumerate(nodes):
            first, last = left is not None and i == 0, right is not None and i == len(nodes) - 1
            if isinstance(node, Group) and (first or last) and _has_anchor(node):
                # Alternatives of this group may be anchored and others not: each has its own padding.
                parts.append(self.alternatives(node, left=left if first else None, right=right if last else None))
                before, after = "" if first else before, "" if last else after
            else:
                parts.append(self._node(node))
        return f"{before}{''.join(parts)}{after}"

    def _node(self, node: Node) -> str:
        match node:
            case Characters():
                return self.characters(node)
            case Group():
                return self.alternatives(node, left=None, right=None)
            case Repeat():
                return f"{self._node(node.node)}{{{node.least},{'' if node.most is None else node.most}}}"
            case Anchor():
                raise GrammarError(
                    f"The regular expression has `{'^' if node.side == 'start' else '$'}` where other characters "
                    f"{'precede' if node.side == 'start' else 'follow'} it; it is possible at the "
                    f"{node.side} of the expression or of an alternative only."
                )

    def characters(self, node: Characters) -> str:
        """One character of a set."""
        if node.negated:
            return f"[^{_ranges(union(node.outer, self._without))}{''.join(node.outer_items)}]"
        if node.inner_items:
            text = f"{_ranges(node.inner)}{''.join(node.inner_items)}"
            return f"[[{text}]--[{_ranges(self._without)}]]" if self._without else f"[{text}]"
        ranges = node.inner
        if meet(ranges, self._without):
            ranges = complement(union(complement(ranges), self._without))
        if len(ranges) == 1 and ranges[0][0] == ranges[0][1]:
            return _point(ranges[0][0])
        return f"[{_ranges(ranges)}]" if ranges else "[^\\x{0}-\\x{10FFFF}]"


def _has_anchor(node: Node) -> bool:
    match node:
        case Anchor():
            return True
        case Repeat():
            return _has_anchor(node.node)
        case Group():
            return any(_has_anchor(child) for nodes in node.alternatives for child in nodes)
        case Characters():
            return False


def _ranges(ranges: Ranges) -> str:
    return "".join(_point(low) if low == high else f"{_point(low)}-{_point(high)}" for low, high in ranges)


def _point(point: int) -> str:
    """Letters and digits as they are; everything else by number, so that nothing needs to be quoted anywhere."""
    character = chr(point)
    return character if character.isascii() and character.isalnum() else f"\\x{{{point:X}}}"
