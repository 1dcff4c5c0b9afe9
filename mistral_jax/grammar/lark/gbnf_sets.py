"""Sets of characters of a GBNF grammar: with which a part begins, what may follow it, and what may prolong it.

A set is an int with a bit for each ASCII character and one for all others together: it may say more than is true, and
then a word is divided without need.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Iterable, Mapping

from mistral_jax.grammar.lark.gbnf_parse import Alternatives, Class, Literal, Node, Reference, Repeat, Sequence

_OTHERS = 128
_ALL = (1 << (_OTHERS + 1)) - 1


class CharacterSets:
    """The sets of all rules, computed until nothing changes."""

    def __init__(self, rules: Mapping[str, Alternatives]) -> None:
        self._rules = rules
        self._empty: dict[str, bool] = dict.fromkeys(rules, False)
        self._first: dict[str, int] = dict.fromkeys(rules, 0)
        self.follow: dict[str, int] = dict.fromkeys(rules, 0)
        """What may come after each rule."""
        self._longer: dict[str, int] = {}
        self._alphabets: dict[str, int] = {}
        users: dict[str, set[str]] = {name: set() for name in rules}
        for name, body in rules.items():
            for used in references_in(body):
                users[used].add(name)
        _until_stable(rules, self._add_first, users)
        _until_stable(rules, self._add_follow, {name: set(references_in(body)) for name, body in rules.items()})

    def may_be_empty(self, node: Node) -> bool:
        """Whether a part matches the empty text."""
        match node:
            case Literal():
                return not node.text
            case Class():
                return False
            case Reference():
                return self._empty[node.name]
            case Repeat():
                return node.least == 0 or self.may_be_empty(node.node)
            case Sequence():
                return all(map(self.may_be_empty, node.nodes))
            case Alternatives():
                return any(map(self.may_be_empty, node.options))

    def first(self, node: Node) -> int:
        """The characters with which a part may begin."""
        match node:
            case Literal():
                return _bit(ord(node.text[0])) if node.text else 0
            case Class():
                return _class_bits(node)
            case Reference():
                return self._first[node.name]
            case Repeat():
                return self.first(node.node) if node.most != 0 else 0
            case Alternatives():
                return _union(map(self.first, node.options))
            case Sequence():
                found = 0
                for part in node.nodes:
                    found |= self.first(part)
                    if not self.may_be_empty(part):
                        break
                return found

    def longer(self, node: Node) -> int:
        """The characters with which a text of a regular part may go on to a longer text of it."""
        match node:
            case Literal() | Class():
                return 0
            case Reference():
                if node.name not in self._longer:
                    self._longer[node.name] = self.longer(self._rules[node.name])
                return self._longer[node.name]
            case Repeat():
                if node.most == node.least == 1:
                    return self.longer(node.node)
                again = self.first(node.node) if node.most is None or node.most > node.least else 0
                if self.longer(node.node) & self.first(node.node):  # where one ends and the next begins is not certain
                    return self.alphabet(node.node)
                return self.longer(node.node) | again
            case Alternatives():
                again = self.first(node) if self.may_be_empty(node) else 0
                if self.overlap(node):  # an option may be the beginning of another
                    return self.alphabet(node)
                return _union(map(self.longer, node.options)) | again
            case Sequence():
                found = 0
                for i, part in reversed(list(enumerate(node.nodes))):
                    rest = Sequence(node.nodes[i + 1 :])
                    if self.longer(part) & self.first(rest):  # the rest may be taken for more of the part
                        return self.alphabet(Sequence(node.nodes[i:])) | found
                    if self.may_be_empty(rest):
                        found |= self.longer(part) | (self.first(part) if self.may_be_empty(part) else 0)
                return found

    def overlap(self, node: Alternatives) -> bool:
        """Whether two options may begin with the same character."""
        seen = 0
        for first in map(self.first, node.options):
            if seen & first:
                return True
            seen |= first
        return False

    def alphabet(self, node: Node) -> int:
        """All characters that texts of a regular part may have."""
        match node:
            case Literal():
                return _union(map(_bit, map(ord, node.text)))
            case Class():
                return _class_bits(node)
            case Reference():
                if node.name not in self._alphabets:
                    self._alphabets[node.name] = self.alphabet(self._rules[node.name])
                return self._alphabets[node.name]
            case Repeat():
                return self.alphabet(node.node)
            case Sequence():
                return _union(map(self.alphabet, node.nodes))
            case Alternatives():
                return _union(map(self.alphabet, node.options))

    def after(self, nodes: tuple[Node, ...], then: int) -> int:
        """What may come next where some parts follow, and then `then`."""
        rest = Sequence(nodes)
        return self.first(rest) | (then if self.may_be_empty(rest) else 0)

    def _add_first(self, name: str) -> bool:
        before = self._empty[name], self._first[name]
        self._empty[name], self._first[name] = self.may_be_empty(self._rules[name]), self.first(self._rules[name])
        return before != (self._empty[name], self._first[name])

    def _add_follow(self, name: str) -> bool:
        return self._followed(self._rules[name], self.follow[name])

    def _followed(self, node: Node, then: int) -> bool:
        """Adds what follows to the rules in a part; returns whether one of them has changed."""
        match node:
            case Reference():
                before = self.follow[node.name]
                self.follow[node.name] = before | then
                return before != self.follow[node.name]
            case Repeat():
                return self._followed(node.node, then | self.first(node.node))
            case Alternatives():
                changed = False
                for option in node.options:
                    changed |= self._followed(option, then)
                return changed
            case Sequence():
                changed = False
                for part in reversed(node.nodes):
                    changed |= self._followed(part, then)
                    then = self.first(part) | (then if self.may_be_empty(part) else 0)
                return changed
            case _:
                return False


def references_in(node: Node) -> list[str]:
    """The names of the rules that a part refers to."""
    found, stack = list[str](), [node]
    while stack:
        match current := stack.pop():
            case Reference():
                found.append(current.name)
            case Repeat():
                stack.append(current.node)
            case Sequence():
                stack += current.nodes
            case Alternatives():
                stack += current.options
            case _:
                pass
    return found


def _until_stable(
    rules: Mapping[str, Alternatives], step: Callable[[str], bool], affected: Mapping[str, set[str]]
) -> None:
    """Takes a step for each rule, and again for those that a change affects."""
    waiting = set(rules)
    while waiting:
        changed = [name for name in waiting if step(name)]
        waiting = set[str]().union(*(affected[name] for name in changed))


def _bit(point: int) -> int:
    return 1 << min(point, _OTHERS)


def _class_bits(node: Class) -> int:
    found = 0
    for low, high in node.ranges:
        if low <= min(high, _OTHERS):
            found |= (1 << (min(high, _OTHERS) + 1)) - (1 << low)
        elif low > _OTHERS:
            found |= 1 << _OTHERS
    # What is outside of some of the other characters is never all of them.
    return _ALL & (~found | 1 << _OTHERS) if node.negated else found


def _union(sets: Iterable[int]) -> int:
    return functools.reduce(operator.or_, sets, 0)
