"""Patterns mean the same as in Python, or less where Python and JavaScript disagree; never more."""

from __future__ import annotations

import json
import re

import pytest

from mistral_jax.grammar.grammar import Grammar, GrammarError
from mistral_jax.grammar.patterns import full_match, search
from tests.mistral_jax.grammar.walks import takes

TEXTS = (
    *("", "a", "b", "abc", "xabcx", "ab", "ba", "aXb", "aa", "aab", "A", "1a", "5", "-", "_", "a-b", "a b", "a/b"),
    *("a\n", "\n", " ", "\t", "é", "ß", "日本", "😀", "٣", "\u00a0", "\ufeff", "\u2028", "x{2", "]", '"', "\\"),
)
FIND = "byte_level"

EXACT = (
    *("^abc$", "abc", "^a|b$", "(^a|b)c", "^(a|b$)", "^", "$", "", "a{2", "^[a-c]{2,3}$", "x*$", "(a|)b|^ $", "a/b"),
    *("^\\x61$", "((^a))", "(?:^ab|c)$", "^(?:a|^b)$", "^[^a]$", "^a*?b$", "^[ab]+?$", "[\\]\\\\]", "^\\u00e9$"),
    *("^(?:a|b){2}$", "^(a{2}|b)+$", '^["\\\\]$', "^[-a]$", "^[a-]$", "^\\-$", "^[ß-é]$", "^日"),
)
_WORD = re.compile(r"\w", re.ASCII)
_JS_SPACE = re.compile(r"[\t-\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]")
LESS = {
    "^\\w$": lambda c: bool(_WORD.fullmatch(c)),
    "^\\W$": lambda c: len(c) == 1 and not _WORD.fullmatch(c),
    "^\\d$": lambda c: c in set("0123456789"),
    "^\\D$": lambda c: len(c) == 1 and c not in "0123456789",
    "^[^\\d]$": lambda c: len(c) == 1 and c not in "0123456789",
    "^\\s$": lambda c: bool(_JS_SPACE.fullmatch(c)),
    "^\\S$": lambda c: len(c) == 1 and not _JS_SPACE.fullmatch(c),
    "^[^\\s]+$": lambda c: len(c) > 0 and not _JS_SPACE.search(c),
    "^.$": lambda c: len(c) == 1 and c not in "\n\r\u2028\u2029",
    "^[\\w-]$": lambda c: bool(_WORD.fullmatch(c)) or c == "-",
}
"""Patterns about which dialects disagree, and what JavaScript takes."""


def found(pattern: str, text: str) -> bool:
    return takes(FIND, Grammar.json_schema(json.dumps({"type": "string", "pattern": pattern})), _quoted(text))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


@pytest.mark.parametrize("pattern", EXACT)
def test_a_pattern_finds_what_python_finds(pattern: str) -> None:
    for text in TEXTS:
        # Python's `$` also matches before a last line feed; the end is the end here.
        expected = bool(re.search(pattern.replace("$", r"\Z"), text))
        assert found(pattern, text) == expected, text


@pytest.mark.parametrize("pattern", LESS)
def test_where_dialects_disagree_only_what_all_take_is_taken(pattern: str) -> None:
    taken = [text for text in TEXTS if found(pattern, text)]
    assert taken == [text for text in TEXTS if re.search(pattern, text) and LESS[pattern](text)]


def test_javascript_spellings() -> None:
    for pattern, yes, no in (
        ("^[^]$", "\n", ""),
        ("^[\\s\\S]$", "\ufeff", ""),
        ("^\\ud83d\\ude00$", "😀", "a"),
        ("^\\u{1F600}$", "😀", "u"),
        ("^\\cJ$", "\n", "J"),
        ("^\\p{L}+$", "aß日", "a1"),
        ("^\\P{L}$", "1", "a"),
        ("^[\\p{Lu}\\d]+$", "A1", "a"),
        ("^(?<year>\\d{4})$", "2024", "24"),
        ("^\\/$", "/", "\\"),
        ("^[\\b]?x$", "x", "bx"),
        ("^\\0?x$", "x", "0x"),
    ):
        assert found(pattern, yes), pattern
        assert not found(pattern, no), pattern


@pytest.mark.parametrize(
    ("pattern", "named"),
    [
        ("(?=a)b", "a lookahead"),
        ("a(?!b)", "a lookahead"),
        ("(?<=a)b", "a lookbehind"),
        ("(?<!a)b", "a lookbehind"),
        ("(a)\\1", "a backreference"),
        ("(?<n>a)\\k<n>", "a backreference"),
        ("\\bword\\b", "a word boundary"),
        ("a++", "a possessive quantifier"),
        ("(?>a)", "an atomic group"),
        ("(?i)a", "a flag or group"),
        ("[a&&b]", "an operation on classes"),
        ("[[:alpha:]]", "a class in a class"),
        ("\\y", "an escape"),
        ("\\A", "an escape"),
        ("a{3,2}", "out of order"),
        ("[z-a]", "a range out of order"),
        ("[\\d-z]", "a range between sets"),
        ("a{10001}", "more than 10,000 repetitions"),
        ("(" * 101 + ")" * 101, "more than 100 levels"),
        ("a" * 8193, "8,193 characters"),
        ("(a", "an unmatched `(`"),
        ("a)", "an unmatched `)`"),
        ("[a", "a class without its `]`"),
        ("*a", "nothing to repeat"),
        ("\\", "an incomplete escape"),
        ("a^b", "`^` where other characters precede it"),
        ("a$b", "`$` where other characters follow it"),
        ("(^a)*", "`^` where"),
        ("\\ud800", "half of a surrogate pair"),
        ("[\ud800]", "half of a surrogate pair"),
    ],
)
def test_what_cannot_be_held_is_refused_by_name(pattern: str, named: str) -> None:
    with pytest.raises(GrammarError, match=re.escape(named)):
        search(pattern)


def test_an_expression_for_the_whole_completion_matches_as_a_whole() -> None:
    for pattern, yes, no in (
        ("a|b", "b", "ab"),
        ("^\\d+$", "12", "12a"),
        ("(?i)ab(?-i:)?", "", ""),
        ("(?i)abc", "aBC", "abcd"),
        ("(?s)a.b", "a\nb", "ab"),
        ("(?i:a)b", "Ab", "AB"),
        ("\\Aab\\Z", "ab", "b"),
        ("[\\s\\S]{2}", "\n\x00", "a"),
        ("(?P<word>\\w+)", "ab", ""),
    ):
        if "-i" in pattern:
            with pytest.raises(GrammarError, match="a flag or group"):
                full_match(pattern)
            continue
        grammar = Grammar.regex(pattern)
        assert takes(FIND, grammar, yes), pattern
        assert not takes(FIND, grammar, no), pattern


def test_nothing_in_a_translation_needs_quoting() -> None:
    text = search('^/"\\n\\/#[^/"]\\t%{"a"}$')
    assert set(text) <= set("(?:s.)*^$[]\\x{},-|") | set("abcdefABCDEF0123456789")
