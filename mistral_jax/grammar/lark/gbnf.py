"""Brings GBNF, the grammars of llama.cpp, into llguidance's Lark.

GBNF speaks of characters, llguidance of words: regular expressions, each of which takes as much text as it can. A rule
that does not refer back to itself is regular, and so is a run of such parts inside another rule: it becomes one word,
unless what follows might be taken for more of the word; then it is divided into smaller ones, down to characters. A
grammar without recursion is one word as a whole. Where two different words begin alike, one inside the other, the
longer one is taken, as in all of llguidance's grammars.
"""

from __future__ import annotations

from mistral_jax.grammar.grammar import GrammarError
from mistral_jax.grammar.lark.gbnf_parse import Alternatives, Class, Literal, Node, Reference, Repeat, Sequence, parse
from mistral_jax.grammar.lark.gbnf_sets import CharacterSets, references_in
from mistral_jax.grammar.patterns import class_text, literal

MAX_RUN = 50
"""Parts of one word."""

MAX_GROUPS = 4_000
"""Rules and groups. Llguidance goes through them recursively; see `mistral_jax.grammar.limits`."""


def gbnf_to_lark(text: str) -> str:
    """The grammar in Lark.

    Raises:
      GrammarError: it is not valid, or exceeds a limit.
    """
    rules = parse(text)
    return _Writer(rules).whole()


class _Writer:
    """Gives every group a name of its own, so that nothing is nested."""

    def __init__(self, rules: dict[str, Alternatives]) -> None:
        self._rules = rules
        self._numbers = {name: i for i, name in enumerate(rules)}
        self._recursive = _recursive(rules)
        # Undefined rules have been found by now.
        self._sets = CharacterSets(rules)
        self._groups: dict[tuple[str, str], str] = {}
        """Names of groups by their definitions. In Lark, words have names in capitals, rules in small letters."""
        self._divided: dict[tuple[str, int], str] = {}
        """Groups for regular rules that are no word where some characters follow."""
        self._spelled: dict[str, str] = {}
        """Groups for regular rules, by single characters."""

    def whole(self) -> str:
        lines = [f"start: {self._reference('root')}"]
        for name, body in self._rules.items():
            follow = self._sets.follow[name]
            definition = self._of_rule(body, follow) if name in self._recursive else self._of_word(body)
            lines.append(f"{self._reference(name)}: {definition}")
        lines += [f"{name}: {definition}" for (_, definition), name in self._groups.items()]
        if len(lines) > MAX_GROUPS:
            raise GrammarError(f"The grammar has {len(lines):,} groups and rules; at most {MAX_GROUPS:,} are possible.")
        return "\n".join(lines)

    def _reference(self, rule: str) -> str:
        return f"{'r' if rule in self._recursive else 'R'}{self._numbers[rule]}"

    def _is_word(self, node: Node) -> bool:
        match node:
            case Literal() | Class():
                return True
            case Reference():
                return node.name not in self._recursive
            case Repeat():
                return self._is_word(node.node)
            case Sequence():
                return all(map(self._is_word, node.nodes))
            case Alternatives():
                return all(map(self._is_word, node.options))

    def _of_rule(self, node: Node, then: int) -> str:
        """The definition of a part that is not one word.

        Args:
          node: The part.
          then: The characters that may follow it.
        """
        match node:
            case Alternatives() if self._is_word(node) and self._sets.overlap(node):
                return " | ".join(map(self._by_character, node.options))
            case Alternatives():
                return " | ".join(self._part(option, then) for option in node.options)
            case Sequence():
                return self._sequence(node.nodes, then)
            case Repeat():
                return f"{self._part(node.node, then | self._sets.first(node.node))}{_times(node)}"
            case _:
                return self._part(node, then)

    def _sequence(self, nodes: tuple[Node, ...], then: int) -> str:
        """Runs of regular parts become words, as long as what follows cannot be taken for more of the word."""
        parts, end = list[str](), len(nodes)
        while end:
            start = end
            while start and end - start < MAX_RUN and self._is_word(nodes[start - 1]):
                start -= 1
            run = Sequence(nodes[start:end])
            if run.nodes and not self._sets.longer(run) & then:
                parts.append(self._word(run))
                end, then = start, self._sets.after(run.nodes, then)
            else:
                end -= 1
                parts.append(self._part(nodes[end], then))
                then = self._sets.after(nodes[end : end + 1], then)
        return " ".join(reversed(parts)) or '""'

    def _part(self, node: Node, then: int) -> str:
        """A part of a rule, as one word if that is exact."""
        if self._is_word(node):
            if not self._sets.longer(node) & then:
                return self._word(node)
            if isinstance(node, Reference):
                if (node.name, then) not in self._divided:
                    definition = self._of_rule(self._rules[node.name], then)
                    self._divided[node.name, then] = self._named(definition, "g")
                return self._divided[node.name, then]
        elif isinstance(node, Reference):
            return self._reference(node.name)
        return self._named(self._of_rule(node, then), "g")

    def _by_character(self, node: Node) -> str:
        """A regular part as a rule whose words are single characters: slow, but exact whatever is around it."""
        match node:
            case Literal():
                return self._named(" ".join(f"/{literal(character)}/" for character in node.text) or '""', "g")
            case Class():
                return self._word(node)
            case Reference():
                if node.name not in self._spelled:
                    self._spelled[node.name] = self._by_character(self._rules[node.name])
                return self._spelled[node.name]
            case Repeat():
                return self._named(f"{self._by_character(node.node)}{_times(node)}", "g")
            case Sequence():
                return self._named(" ".join(map(self._by_character, node.nodes)) or '""', "g")
            case Alternatives():
                return self._named(" | ".join(map(self._by_character, node.options)), "g")

    def _of_word(self, node: Node) -> str:
        """The definition of a regular part."""
        match node:
            case Alternatives():
                return " | ".join(map(self._word, node.options))
            case Sequence():
                return " ".join(map(self._word, node.nodes)) if node.nodes else '""'
            case Repeat():
                return f"{self._word(node.node)}{_times(node)}"
            case _:
                return self._word(node)

    def _word(self, node: Node) -> str:
        match node:
            case Literal():
                return f"/{literal(node.text)}/" if node.text else '""'
            case Class():
                return f"/{class_text(node.ranges, negated=node.negated)}/"
            case Reference():
                return self._reference(node.name)
            case Sequence() if len(node.nodes) == 1:
                return self._word(node.nodes[0])
            case Alternatives() if len(node.options) == 1:
                return self._word(node.options[0])
            case _:
                return self._named(self._of_word(node), "G")

    def _named(self, definition: str, kind: str) -> str:
        return self._groups.setdefault((kind, definition), f"{kind}{len(self._groups)}")


def _times(node: Repeat) -> str:
    if node.most is None and node.least <= 1:
        return "+" if node.least else "*"
    return f"{{{node.least},{'' if node.most is None else node.most}}}"


def _recursive(rules: dict[str, Alternatives]) -> set[str]:
    """The rules that reach a rule that refers back to itself."""
    uses = {name: set(references_in(body)) for name, body in rules.items()}
    for name, used in uses.items():
        if missing := sorted(used - uses.keys()):
            raise GrammarError(f"The rule {name!r} of the grammar refers to {missing[0]!r}, which is not defined.")
    # Rules that only refer to regular ones are regular.
    users: dict[str, list[str]] = {name: [] for name in rules}
    for name, used in uses.items():
        for other in used:
            users[other].append(name)
    regular, candidates = set[str](), set(rules)
    while candidates:
        found = {name for name in candidates if uses[name] <= regular}
        regular |= found
        candidates = {user for name in found for user in users[name]} - regular
    return set(rules) - regular
