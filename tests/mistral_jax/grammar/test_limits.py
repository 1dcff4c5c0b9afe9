"""Hostile grammars: compiled or refused in bounded time, and no mask takes long. (Grammar, regex and schema DoS.)"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any

import numpy as np
import pytest

from mistral_jax.grammar import limits
from mistral_jax.grammar.constraint import ConstraintError
from mistral_jax.grammar.grammar import Grammar, GrammarError
from tests.mistral_jax.grammar.walks import PADDING, compiler, tokenizer_of

HEAVY = "(?:[a-z]{0,9}[a-m][a-z]{1,15}){1,50}"


def schema(value: Any) -> Grammar:
    return Grammar.json_schema(json.dumps(value))


def nested(levels: int) -> Any:
    made: Any = {"type": "string"}
    for _ in range(levels):
        made = {"anyOf": [{"type": "object", "properties": {"a": made}, "required": ["a"]}, {"items": made}]}
    return made


def deep(levels: int) -> Any:
    made: Any = {"type": "string"}
    for _ in range(levels):
        made = {"items": made}
    return made


def product(factors: int) -> Any:
    def one(name: str, type_: str) -> Any:
        return {"properties": {name: {"type": type_}}, "required": [name]}

    cases = [{"anyOf": [one(f"a{i}", "string"), one(f"b{i}", "integer")]} for i in range(factors)]
    return {"type": "object", "allOf": cases}


def chain(length: int, definition: Any, last: Any) -> Any:
    """Definitions each of which refers to the next; `definition` has "NEXT" in its place."""
    text = json.dumps(definition)
    defs = {f"d{i}": json.loads(text.replace('"NEXT"', f'"#/$defs/d{i + 1}"')) for i in range(length)}
    return {"$ref": "#/$defs/d0", "$defs": {**defs, f"d{length}": last}}


LINK = {"properties": {"a": {"$ref": "NEXT"}}, "required": ["a"], "type": "object", "additionalProperties": False}

HOSTILE = {
    "quotes": Grammar.json_schema('"' + '\\"' * 60_000),
    "brackets": Grammar.json_schema("[" * 60_000),
    "numbers": Grammar.json_schema('{"const": ' + "9" * 100_000 + "}"),
    "exponent": Grammar.json_schema('{"const": 1e999999999999}'),
    "deep": schema(deep(95)),
    "nested": schema(nested(8)),
    "product": schema(product(7)),
    "large product": schema(product(20)),
    "all of twice": schema(chain(20, {"allOf": [{"$ref": "NEXT"}, {"$ref": "NEXT"}]}, {"type": "object"})),
    "any of twice": schema(chain(20, {"anyOf": [{"$ref": "NEXT"}, {"$ref": "NEXT"}]}, {"type": "object"})),
    "definitions": schema(chain(900, LINK, {"type": "string"})),
    "all of in a row": schema(chain(300, {"allOf": [{"$ref": "NEXT"}], "title": "x"}, {"type": "object"})),
    "enum": schema({"enum": [f"v{i * 7919}" for i in range(2000)]}),
    "enum of objects": schema({"enum": [{"a": i, "b": str(i)} for i in range(1000)]}),
    "one of enums": schema({"oneOf": [{"enum": [f"x{i}_{j}" for j in range(40)]} for i in range(150)]}),
    "one of objects": schema(
        {"oneOf": [{"properties": {"k": {"const": i}}, "required": ["k"], "type": "object"} for i in range(300)]}
    ),
    "optional properties": schema({"properties": {f"p{i}": {} for i in range(2000)}}),
    "required properties": schema({"required": [f"p{i}" for i in range(2000)], "type": "object"}),
    "any of objects": schema({"anyOf": [{"properties": {f"{i}_{j}": {} for j in range(20)}} for i in range(100)]}),
    "patterns": schema({"prefixItems": [{"pattern": HEAVY + str(i)} for i in range(300)]}),
    "intersections": schema({"allOf": [{"type": "string", "pattern": f"a.{{{i}}}$"} for i in range(2, 30)]}),
    "intersection": schema({"allOf": [{"type": "string", "pattern": HEAVY}, {"pattern": f"^{HEAVY}$"}]}),
    "long patterns": schema(
        {"anyOf": [{"type": "string", "pattern": "|".join(f"w{i * j}x" for i in range(800))} for j in range(1, 13)]}
    ),
    "pattern properties": schema({"patternProperties": {f"^p{i}[a-z]*$": {} for i in range(60)}}),
    "length": schema({"type": "string", "minLength": 100_000, "maxLength": 100_000}),
    "items": schema({"maxItems": 9999, "items": {"maxItems": 9999, "items": {"maxItems": 9999}}, "type": "array"}),
    "divisors": schema({"prefixItems": [{"type": "integer", "multipleOf": 9999 - i} for i in range(300)]}),
    "constant": schema({"const": "lorem ipsum " * 10_000}),
    "formats": schema({"prefixItems": [{"type": "string", "format": "email"}] * 500}),
    "repetition": Grammar.regex("a{10000}"),
    "large repetition": Grammar.regex("a{1000000}"),
    "nested repetition": Grammar.regex("((a{1,100}){1,100}){1,100}"),
    "catastrophic backtracking": Grammar.regex("(a+)+b"),
    "exponential automaton": Grammar.regex("[ab]*a[ab]{30}"),
    "heavy": Grammar.regex(HEAVY * 100),
    "letters": Grammar.regex("(?:\\p{L}{0,9}\\p{Lu}\\p{L}{1,15}){1,50}"),
    "optional letters": Grammar.regex("a?" * 2000 + "b"),
    "groups": Grammar.regex("(" * 99 + "a" + ")*" * 99),
    "ignored case": Grammar.regex("(?i)" + "abcdefghij" * 800),
    "choices": Grammar.choice([f"{i * 7919}y" for i in range(2000)]),
    "many choices": Grammar.choice([str(i) for i in range(2001)]),
    "long choices": Grammar.choice(["lorem ipsum " * 1000] * 10),
    "left recursion": Grammar.lark('start: start "a" | "a"'),
    "ambiguity": Grammar.lark('start: start start | "a"'),
    "nothing": Grammar.lark("start: start"),
    "no end": Grammar.lark('start: "a" start'),
    "no end, choices": Grammar.lark('start: "a" start | "b" start'),
    "loops": Grammar.lark('start: x*\nx: y*\ny: z*\nz: "" | "a"'),
    "rules": Grammar.lark("start: r0\n" + "\n".join(f'r{i}: "a" r{i + 1} | "b"' for i in range(990)) + '\nr990: "z"'),
    "terminals": Grammar.lark("start: T0\n" + "\n".join(f'T{i}: "a" T{i + 1}' for i in range(990)) + '\nT990: "z"'),
    "six intersections": Grammar.lark(
        "start: T\nT: " + " & ".join(f"/(?:[a-z]*[a-{chr(98 + i)}][a-z]{{{i}}})*/" for i in range(2, 9))
    ),
    "unfinished strings": Grammar.lark('start: "' + '\\"' * 30_000),
    "GBNF left recursion": Grammar.gbnf('root ::= root "a" | "b"'),
    "GBNF nothing": Grammar.gbnf("root ::= root"),
    "GBNF rules": Grammar.gbnf(
        "root ::= r0\n" + "\n".join(f'r{i} ::= "a" r{i + 1} r{i + 1} | "b"' for i in range(900)) + "\nr900 ::= root"
    ),
    "GBNF regular rules": Grammar.gbnf(
        "root ::= r0 root?\n"
        + "\n".join(f'r{i} ::= "a" r{i + 1} r{i + 1} | "b"' for i in range(200))
        + '\nr200 ::= "z"'
    ),
    "GBNF groups": Grammar.gbnf("root ::= " + " ".join(f'("a{i}" | "b")*' for i in range(600)) + " root?"),
    "GBNF repetition": Grammar.gbnf('root ::= (("a"{1000}){1000}){1000} "b"'),
    "GBNF ambiguity": Grammar.gbnf('root ::= [a-z]* root [a-z]* | "x"'),
}


def drive(kind: str, grammar: Grammar) -> tuple[float, float, str]:
    """Seconds of processor time to compile it, and of the slowest step of a completion; and the error, if there is
    one."""
    compiler(kind).vocabulary  # made once, with the first grammar of a server
    start = time.process_time()
    try:
        compiled = compiler(kind).compile(grammar)
    except GrammarError as error:
        return time.process_time() - start, 0.0, str(error)
    took, slowest, chance = time.process_time() - start, 0.0, random.Random(0)
    made, constraint = tokenizer_of(kind), compiled.start(at_start=True)
    mask = np.zeros(-(-(made.vocab_size + PADDING) // 32), np.int32)
    try:
        for _ in range(40):
            start = time.process_time()
            if constraint.complete:
                break
            constraint.forced()
            constraint.fill(mask)
            slowest = max(slowest, time.process_time() - start)
            ids = np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))
            ids = ids[ids != made.eos_id] if len(ids) > 1 else ids
            start = time.process_time()
            constraint.push(int(chance.choice(ids)))
            slowest = max(slowest, time.process_time() - start)
    except ConstraintError as error:
        return took, slowest, str(error)
    return took, slowest, ""


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_takes_bounded_time(name: str) -> None:
    took, slowest, error = drive("byte_level", HOSTILE[name])
    # Most take some tenths of a second and some milliseconds.
    assert took < limits.TIME_LIMIT
    assert slowest < 0.5
    assert len(error) < 400
    assert "takes longer" not in error


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tekken", "sentencepiece"])
def test_hostile_grammars_take_bounded_time_with_large_vocabularies(kind: str) -> None:
    for name, grammar in HOSTILE.items():
        took, slowest, _ = drive(kind, grammar)
        assert took < limits.TIME_LIMIT, name
        assert slowest < 0.5, name


def test_the_largest_grammars_neither_overflow_the_stack_nor_fill_the_memory() -> None:
    """In a process of its own, as an overflow would end this one; masks run on a small stack."""
    code = """
        import pathlib, threading
        from tests.mistral_jax.grammar.test_limits import HOSTILE, drive
        names = ("definitions", "all of in a row", "rules", "terminals", "GBNF rules", "groups", "deep", "nested")
        threading.stack_size(512 * 1024)
        def run():
            for name in names:
                drive("byte_level", HOSTILE[name])
            # Not ru_maxrss: that begins at what the process that started this one has used.
            words = pathlib.Path("/proc/self/status").read_text().split()
            print("done", int(words[words.index("VmHWM:") + 1]) // 1024)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    words = done.stdout.split()
    assert words[0] == "done"
    assert int(words[1]) < 1500  # MiB, tests and libraries included


def test_what_takes_too_long_is_given_up_and_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TIME_LIMIT", 0.1)
    ends = [threading.Event() for _ in range(limits.MAX_COMPILING)]
    for end in ends:
        with pytest.raises(GrammarError, match=r"longer than 0\.1 seconds"):
            limits.with_stack(end.wait)
    with pytest.raises(GrammarError, match="busy with other grammars"):
        limits.with_stack(lambda: 1)
    for end in ends:
        end.set()
    monkeypatch.setattr(limits, "TIME_LIMIT", 30.0)  # which waits for a place, and gives a busy machine time
    assert limits.with_stack(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        limits.with_stack(lambda: 1 // 0)
    assert limits.with_stack(lambda: 2) == 2


def test_recursion_ends_in_an_error() -> None:
    def forever(n: int) -> int:
        return forever(n + 1) + 1

    with pytest.raises(GrammarError, match="nested too deeply"):
        limits.with_stack(lambda: forever(0))
