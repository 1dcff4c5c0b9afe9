"""GBNF grammars take the texts that they describe, character by character."""

from __future__ import annotations

import itertools
import re

import pytest

from mistral_jax.grammar.grammar import Grammar, GrammarError
from mistral_jax.grammar.lark import gbnf_to_lark
from mistral_jax.grammar.lark.gbnf_parse import Alternatives, Class, Literal, Node, Reference, Repeat, Sequence, parse
from tests.mistral_jax.grammar.walks import takes

KIND = "byte_level"

JSON = r"""
root   ::= object
value  ::= object | array | string | number | ("true" | "false" | "null") ws

object ::=
  "{" ws (
            string ":" ws value
    ("," ws string ":" ws value)*
  )? "}" ws

array  ::=
  "[" ws (
            value
    ("," ws value)*
  )? "]" ws

string ::=
  "\"" (
    [^"\\\x7F\x00-\x1F] |
    "\\" (["\\bfnrt] | "u" [0-9a-fA-F]{4}) # escapes
  )* "\"" ws

number ::= ("-"? ([0-9] | [1-9] [0-9]{0,15})) ("." [0-9]+)? ([eE] [-+]? [0-9] [1-9]{0,15})? ws

# Optional space: a space, or a new line with its indentation
ws ::= | " " | "\n" [ \t]{0,20}
"""

ARITHMETIC = r"""
root  ::= (expr "=" ws term "\n")+
expr  ::= term ([-+*/] term)*
term  ::= ident | num | "(" ws expr ")" ws
ident ::= [a-z] [a-z0-9_]* ws
num   ::= [0-9]+ ws
ws    ::= [ \t\n]*
"""


def taken(grammar: str, text: str) -> bool:
    return takes(KIND, Grammar.gbnf(grammar), text)


def test_grammars_of_llama_cpp() -> None:
    for text in ("{}", '{"a": 1}', '{"a":[1, 2.5e3,{"b":null}], "c":\n  "x\\n\\u00e9"}', '{ "é": true }'):
        assert taken(JSON, text), text
    for text in ("[1]", '{"a" 1}', '{"a":}', '{"a": "\\x"}', '{"a":  1}'):
        assert not taken(JSON, text), text
    # `ws` may take the line's end, and may leave it.
    for text in ("1+2=3\n", "(a +(b)) *2=x \n1=1\n\n", "a=b\t\n"):
        assert taken(ARITHMETIC, text), text
    for text in ("1+=3\n", "1=2", "=\n"):
        assert not taken(ARITHMETIC, text), text


GRAMMARS = (
    'root ::= "a" root "b" | ""',
    'root ::= root "a" | "b"',
    'root ::= "a" root | "b"',
    "root ::= [ab]* root? c\nc ::= [b] | [a] c",
    'root ::= x "b" root?\nx ::= [ab]*',
    'root ::= x y root | "c"\nx ::= "a"? \ny ::= [ab]{1,2}',
    'root ::= ("a" | "ab") ("c" root | "bc")',
    'root ::= "a"{2} | "b"{2,} | "c"{0,1} root "c"',
    "root ::= [^a] root [^b] | .",
    'root ::= e\ne ::= e "a" e | "b"\n',
    'root ::= "(" root ")" | [a]+',
    'root ::= w "a" w root? | "c"\nw ::= [ab]*',
    'root ::= "ab"* root? "a"',
)


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_all_short_texts_are_decided_as_by_a_recogniser_of_characters(grammar: str) -> None:
    rules, count = parse(grammar), 0
    for length in range(6):
        for letters in itertools.product("abc(" if "(" in grammar else "abc", repeat=length):
            text = "".join(letters)
            expected = len(text) in Recogniser(rules, text).ends("root", 0)
            assert taken(grammar, text) == expected, text
            count += expected
    assert count > 1


class Recogniser:
    """All ends of all rules at all places of one text, until nothing is added."""

    def __init__(self, rules: dict[str, Alternatives], text: str) -> None:
        self._rules, self._text = rules, text
        self._known: dict[tuple[str, int], set[int]] = {}

    def ends(self, name: str, start: int) -> set[int]:
        size = -1
        self._known.setdefault((name, start), set())
        while size != sum(map(len, self._known.values())) + len(self._known):
            size = sum(map(len, self._known.values())) + len(self._known)
            for rule, place in list(self._known):
                self._known[rule, place] |= self._of(self._rules[rule], {place})
        return self._known[name, start]

    def _of(self, node: Node, starts: set[int]) -> set[int]:
        match node:
            case Literal():
                return {i + len(node.text) for i in starts if self._text.startswith(node.text, i)}
            case Class():
                inside = {
                    i
                    for i in starts
                    if i < len(self._text) and any(a <= ord(self._text[i]) <= b for a, b in node.ranges)
                }
                return {i + 1 for i in (starts - inside if node.negated else inside) if i < len(self._text)}
            case Reference():
                return set().union(*(self._known.setdefault((node.name, i), set()) for i in starts))
            case Alternatives():
                return set().union(*(self._of(option, starts) for option in node.options))
            case Sequence():
                for part in node.nodes:
                    starts = self._of(part, starts)
                return starts
            case Repeat():
                found = set(starts) if node.least == 0 else set[int]()
                for count in range(1, (node.most if node.most is not None else node.least + len(self._text)) + 1):
                    starts = self._of(node.node, starts)
                    found |= starts if count >= node.least else set()
                return found


@pytest.mark.parametrize("last", ['"z"', '[ab]* | "b"'])
def test_rules_that_double_in_each_step_stay_small(last: str) -> None:
    lines = ["root ::= r0 root | r0", *(f'r{i} ::= r{i + 1} r{i + 1} | "a"' for i in range(60)), f"r60 ::= {last}"]
    assert len(gbnf_to_lark("\n".join(lines))) < 20_000


def test_characters_and_escapes() -> None:
    for grammar, yes, no in (
        (r'root ::= "\x41\u00e9\U0001F600\"\\\n\t"', 'Aé😀"\\\n\t', "A"),
        (r"root ::= [\]\-\\\[]{2}", "]-", "a]"),
        ("root ::= [a-]+", "a-a", "b"),
        ("root ::= [^a-y]", "z", "a"),
        ("root ::= .{2}", "\nä", "a"),
        ('root ::= "a/b" "%" "#" # comment "x"\n', "a/b%#", "a/b"),
        ('root ::= "a" |\n  "b"\n  | "c"', "c", "d"),
        ('my-rule_2 ::= "x"\nroot ::= my-rule_2', "x", "y"),
        ('root ::= ""', "", "a"),
    ):
        assert taken(grammar, yes), grammar
        assert not taken(grammar, no), grammar


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        ('start ::= "a"', "no rule `root"),
        ('root ::= "a" x', "refers to 'x', which is not defined"),
        ('root ::= "a"\nroot ::= "b"', "Line 2 of the grammar: the rule 'root' is defined twice"),
        ('root := "a"', "`::=` was expected"),
        ('root ::= ("a"', "`)` was expected"),
        ('root ::= "a")', "')' is unexpected"),
        ('root ::= "a', "is not finished"),
        ("root ::= [a", "is not finished"),
        (r'root ::= "\q"', r"the escape `\q` is not known"),
        (r'root ::= "\u12"', "needs 4 hexadecimal digits"),
        (r'root ::= "\ud800"', "is no character"),
        ("root ::= [z-a]", "out of order"),
        ('root ::= "a"{3,2}', "out of order"),
        ('root ::= "a"{10001}', "at most 10,000 repetitions"),
        ("root ::= " + "(" * 51 + '"a"' + ")" * 51, "more than 50 levels"),
        ("root ::= <[3]>", "special tokens are not for requests"),
        ("root ::= <think> root", "special tokens are not for requests"),
        ("root ::= !<|eot|>", "special tokens are not for requests"),
        ('root ::= "' + "a" * 65_536 + '"', "more than 65,536 bytes"),
        ("root ::= " + '"a" ' * 8_001, "more than 8,000 parts"),
        ("\n".join(f'r{i} ::= "a"' for i in range(1_001)) + '\nroot ::= "a"', "1,002 rules"),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_no_grammar_is_refused(grammar: str, told: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(told)):
        gbnf_to_lark(grammar)
