"""Chat templates that waste time or memory in ways that a sandbox alone does not see: name and source."""

# ruff: noqa: E501 (a template that is cut over lines is another one)

from __future__ import annotations

_LIST = "{% set ns = namespace(s=['<a&b>']) %}{% for i in range(22) %}{% set ns.s = ns.s + [ns.s] %}{% endfor %}"
"""A list that is small in memory and endless as text."""
_DOUBLED = "{% set ns = namespace(s=['<a&b>']) %}{% for i in range(22) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
_LONG = "{% set ns = namespace(s='a b<') %}{% for i in range(21) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}"
"""8 million characters, half of the limit."""
_HALF_LIMIT = "{% set b = 'a' * 4000000 %}"

HOSTILE = {
    # One long call of C code: nothing in the process can look at the clock meanwhile.
    "a format of braces": "{{ ('{' ~ ':' * 8000000).format() }}",
    "a quadratic search": "{% set a = 'a' * 400000 %}{{ (a ~ 'b' ~ a) in (a * 30) }}",
    "a quadratic count": "{% set a = 'ab' * 200000 %}{{ (a ~ 'c' ~ a).count(a ~ 'd') }}{{ (a * 8).rfind('b' ~ a ~ 'c' ~ a) }}",
    "an integer of 16 million bits": "{{ ('f' * 4000000) | int(0, 16) % 7 }}{{ ('7' * 4000000) | int(0, 8) }}",
    "a remainder of huge integers": "{% set n = ('f' * 8000000) | int(0, 16) %}{{ n % (n // 3) }}",
    "a huge integer as text": "{% set n = ('f' * 8000000) | int(0, 16) %}{{ '%d' % n }}",
    "a product in pieces": "{% set n = ('f' * 4000000) | int(0, 16) %}{{ (n // 3) // (n // 7 // n) }}",
    "comparisons of endless lists": _DOUBLED + "{% set a = ns.s %}" + _DOUBLED + "{{ a == ns.s }}{{ a < ns.s }}",
    "a sum of lists": "{{ ([['a'] * 1000] * 16000) | sum(start=[]) | length }}",
    "a sort of lists": _DOUBLED + "{{ ([ns.s] * 99) | sort | length }}",
    "unique lists": _DOUBLED + "{{ ([ns.s] * 99) | unique | list | length }}",
    "tags to strip": "{{ ('<' * 4000000) | striptags }}",
    "comments to strip": "{{ ('<!--' * 2000000) | striptags }}",
    "links to find": "{{ ('(' * 1000000 ~ 'www.a.b' ~ ')' * 1000000) | urlize }}",
    "words to wrap": "{{ ('a-' * 4000000) | wordwrap(3) }}",
    "a percent format of a named field": "{{ '%(a)999999999d' % {'a': 1} }}",
    # As text they have 2**22 items and more.
    **{
        f"a doubled list through {name}": _DOUBLED + "{{ ns.s | " + name + " | length }}"
        for name in (
            "escape",
            "upper",
            "urlencode",
            "trim",
            "striptags",
            "title",
            "wordcount",
            "capitalize",
            "forceescape",
        )
    },
    "a doubled list through xmlattr": _DOUBLED + "{{ {'a': ns.s} | xmlattr }}",
    "a grown list through upper": _LIST + "{{ ns.s | upper | length }}",
    "a list that holds itself": "{% set ns = namespace(s=[]) %}{% for i in range(999) %}{% set ns.s = [ns.s] * 9 %}{% endfor %}{{ ns.s | upper }}",
    # Much that is each allowed.
    "long texts kept": _HALF_LIMIT
    + "{% set ns = namespace(s=[]) %}{% for i in range(999) %}{% set ns.s = ns.s + [b ~ i] %}{% endfor %}",
    "long texts in long texts": _LONG
    + "{% for i in range(9999) %}{% set x = ns.s | replace('a', 'b') | upper | escape %}{% endfor %}",
    "batches of batches": "{% for i in range(9999) %}{% set x = range(99999) | batch(3) | list | batch(7) | list %}{% endfor %}",
    "groups": "{{ range(99999) | map('string') | groupby('length') | list | length }}" * 50,
    "slices": "{% for i in range(99999) %}{% set x = range(99999) | slice(99999) | list %}{% endfor %}",
    "deep macros": "{% macro f(n) %}{{ g(n) }}{% endmacro %}{% macro g(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "a call in a call": "{% macro f(n) %}{{ caller() }}{{ caller() }}{% endmacro %}"
    + "{% call f(1) %}" * 40
    + "x"
    + "{% endcall %}" * 40,
    "loops in loops": "{% for a in range(99999) %}" * 15 + "{% endfor %}" * 15,
    "a loop that calls itself": "{% for x in [[[1]]] recursive %}{{ loop([x, x, x]) }}{% endfor %}",
    "a long date": "{% for i in range(99999999) %}{{ strftime_now('%c' * 99) }}{% endfor %}",
    "JSON of an endless list": _DOUBLED + "{{ ns.s | tojson }}",
    "characters of four bytes": "{% set ns = namespace(s='😀') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    # What compiling alone costs.
    "deep brackets": "{{ " + "[" * 5000 + "]" * 5000 + " }}",
    "deep negation": "{{ " + "not " * 20_000 + "1 }}",
    "a long sum": "{{ " + "+".join("1" * 1 for _ in range(20_000)) + " }}",
    "deep blocks": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "constants that are folded": "{{ 'a' | center(9999999) | upper | urlencode | list | join('b' | center(99)) }}",
    "many names": "".join("{% set a" + str(i) + " = " + str(i) + " %}" for i in range(20_000)),
    "no end of a string": "{{ '" + "\\'" * 200_000,
    "no end of a comment": "{#" * 300_000,
}

_SLOW_AND_ALIKE = {
    *(
        "many names",
        "constants that are folded",
        "a grown list through upper",
        "a list that holds itself",
        "links to find",
    ),
    *(
        "words to wrap",
        "a long sum",
        "groups",
        "slices",
        "batches of batches",
        "long texts in long texts",
        "a quadratic search",
    ),
    *(f"a doubled list through {name}" for name in ("wordcount", "capitalize", "forceescape")),
    *("unique lists", "a sort of lists", "a product in pieces", "comments to strip", "a huge integer as text"),
}
HOSTILE_SAMPLE = {name: source for name, source in HOSTILE.items() if name not in _SLOW_AND_ALIKE}
"""Without those that take long and are stopped in the same way as others."""
