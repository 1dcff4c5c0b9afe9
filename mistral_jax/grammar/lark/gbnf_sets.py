"""Sets of characters of a GBNF grammar: with which a part begins, what may follow it, and what may prolong it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from mistral_jax.grammar.lark.gbnf_parse import Alternatives, Class, Literal, Node, Reference, Repeat, Sequence
from mistral_jax.grammar.patterns.characters import complement, union
from mistral_jax.grammar.patterns.tree import Ranges


class CharacterSets:
    """The sets of all rules, computed until nothing changes."""

    def __init__(self, rules: Mapping[str, Alternatives]) -> None:
        self._empty: dict[str, bool] = dict.fromkeys(rules, False)
        self._first: dict[str, Ranges] = dict.fromkeys(rules, ())
        self.follow: dict[str, Ranges] = dict.fromkeys(rules, ())
        """What may come after each rule."""
        self._rules = rules
        self._longer: dict[str, Ranges] = {}
        changed = True
        while changed:
            before = dict(self._empty), dict(self._first)
            for name, body in rules.items():
                self._empty[name], self._first[name] = self.may_be_empty(body), self.first(body)
            changed = before != (self._empty, self._first)
        changed = True
        while changed:
            before = dict(self.follow)
            for name, body in rules.items():
                self._add_follow(body, self.follow[name])
            changed = before != self.follow

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

    def first(self, node: Node) -> Ranges:
        """The characters with which a part may begin."""
        match node:
            case Literal():
                return ((ord(node.text[0]), ord(node.text[0])),) if node.text else ()
            case Class():
                return complement(union(node.ranges)) if node.negated else union(node.ranges)
            case Reference():
                return self._first[node.name]
            case Repeat():
                return self.first(node.node) if node.most != 0 else ()
            case Alternatives():
                return union(*map(self.first, node.options))
            case Sequence():
                found: Ranges = ()
                for part in node.nodes:
                    found = union(found, self.first(part))
                    if not self.may_be_empty(part):
                        break
                return found

    def longer(self, node: Node) -> Ranges:
        """The characters with which a text of a regular part may go on to a longer text of it."""
        match node:
            case Literal() | Class():
                return ()
            case Reference():
                if node.name not in self._longer:
                    self._longer[node.name] = self.longer(self._rules[node.name])
                return self._longer[node.name]
            case Repeat():
                again = self.first(node.node) if node.most is None or node.most > node.least else ()
                return union(self.longer(node.node), again)
            case Alternatives():
                # An option may be the beginning of another.
                again = [self.first(node)] if self.may_be_empty(node) else []
                return union(*map(self.longer, node.options), *again, _prolonged_literals(node))
            case Sequence():
                found: Ranges = ()
                for part in reversed(node.nodes):
                    found = union(found, self.longer(part))
                    if not self.may_be_empty(part):
                        break
                    found = union(found, self.first(part))
                return found

    def after(self, nodes: tuple[Node, ...], then: Ranges) -> Ranges:
        """What may come next where some parts follow, and then `then`."""
        rest = Sequence(nodes)
        return union(self.first(rest), then if self.may_be_empty(rest) else ())

    def _add_follow(self, node: Node, then: Ranges) -> None:
        match node:
            case Reference():
                self.follow[node.name] = union(self.follow[node.name], then)
            case Repeat():
                self._add_follow(node.node, union(then, self.first(node.node)))
            case Alternatives():
                for option in node.options:
                    self._add_follow(option, then)
            case Sequence():
                for part in reversed(node.nodes):
                    self._add_follow(part, then)
                    then = union(self.first(part), then if self.may_be_empty(part) else ())
            case _:
                pass


def meet(a: Ranges, b: Ranges) -> bool:
    """Whether two sets have a character in common."""
    return any(low <= high_b and low_b <= high for low, high in a for low_b, high_b in b)


def _prolonged_literals(node: Alternatives) -> Ranges:
    """The characters with which one literal among the options goes on to another."""
    texts = [
        part.text for option in node.options if len(option.nodes) == 1 and isinstance(part := option.nodes[0], Literal)
    ]
    texts.sort()
    points = {ord(b[len(a)]) for a, b in itertools.pairwise(texts) if b.startswith(a) and b != a}
    return union(tuple((point, point) for point in points))
