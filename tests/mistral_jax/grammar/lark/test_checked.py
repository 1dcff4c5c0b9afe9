"""What users may write in Lark."""

from __future__ import annotations

import re

import pytest

from mistral_jax.grammar.grammar import Grammar, GrammarError
from mistral_jax.grammar.lark import checked
from tests.mistral_jax.grammar.walks import compiler, takes

KIND = "byte_level"


def test_text_grammars_pass() -> None:
    for grammar, yes, no in (
        ('start: "a" b+ // c\nb: "x" | /[yz]/ # d', "axyz", "a"),
        ('%llguidance {}\nstart: NAME "=" NUMBER\nNAME: /[a-z]+/\n%import common.NUMBER', "ab=12", "ab="),
        ('start: w ("," w)~1..2\nw: /[a-z]+/\n%ignore " "', "a , b,c", "a"),
        ('start: "<|eot|>" "<[3]>" "%json" "@x"', "<|eot|><[3]>%json@x", ""),
        ('?start: x | "\\"" "/"\nx[lazy]: /a+;/', "aa;", "a"),
        ("start: T\nT: /[ab]*/ & ~/b.*/", "ab", "ba"),
        ('start: "a"i{2,3}', "aA", "a"),
        ("start: /a\\/b/", "a/b", "ab"),
    ):
        assert checked(grammar) == grammar
        assert takes(KIND, Grammar.lark(grammar), yes), grammar
        assert not takes(KIND, Grammar.lark(grammar), no), grammar


@pytest.mark.parametrize(
    ("grammar", "told"),
    [
        ("start: <|im_end|>", "Line 1 of the grammar has a special token: `<|im_end|>`"),
        ('start: "a"\n  <[3]>', "Line 2 of the grammar has a special token: `<[3]>`"),
        ("start: <[*]>", "a special token"),
        ("start: <[^1-3]>", "a special token"),
        ("start: <think>", "a special token"),
        ("start: @other", "a reference to another grammar: `@other`"),
        ('start: %json {"type": "string", "x-guidance": {}}', "a directive that is not for requests: `%json`"),
        ('start: %lark { start: "a" }', "a directive that is not for requests: `%lark`"),
        ('start: %regex {"substring_chars": "abc"}', "a directive that is not for requests: `%regex`"),
        ('%override start: "a"', "a directive that is not for requests: `%override`"),
        ('%llguidance {"allow_invalid_utf8": true}\nstart: "\\xff<[3]>"', "options"),
        ('%llguidance {"no_forcing": true}\nstart: "a"', "options"),
        ('start[max_tokens=3]: "a"', "an attribute that cannot be held: `max_tokens`"),
        ("start[temperature=0.5]: /a/", "an attribute that cannot be held: `temperature`"),
        ('start[capture, stop="b"]: /a*/', "an attribute that cannot be held: `stop`"),
        ("start: perm::0x0", "a rule with parameters"),
        ('start: "a"{10001}', "a number beyond 10,000"),
        ('start: "a"~1..99999', "a number beyond 10,000"),
        ("start: /a{99999}/", "a number beyond 10,000"),
        ('start: "a', "a character that is unexpected here"),
        ("start: /a", "a character that is unexpected here"),
        ("start: T\nT: " + " & ".join(["/a/"] * 8), "7 `&` and `~`"),
        ('start: "' + "a" * 65_536 + '"', "more than 65,536 bytes"),
        ("\n".join(f'r{i}: "a"' for i in range(1_001)), "1,001 rules"),
    ],
    ids=lambda value: value[:40],
)
def test_the_rest_is_refused_by_name(grammar: str, told: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(told)):
        checked(grammar)


@pytest.mark.parametrize(
    "grammar", ["", "start", "begin: 1", 'start: "a" x', "start: start", 'start: "a" & "b"', "start: /(/"]
)
def test_what_llguidance_does_not_compile_is_refused(grammar: str) -> None:
    with pytest.raises(GrammarError):
        compiler(KIND).compile(Grammar.lark(grammar))
