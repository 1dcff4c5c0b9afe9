"""Compares our JSON schema grammars with the official test suite: python -m tests.json_schema_suite FOLDER [--list]

FOLDER is a checkout of https://github.com/json-schema-org/JSON-Schema-Test-Suite (MIT); the source distribution of the
Python package `jsonschema` has it in `json/`. For each schema: is it accepted, or refused by name? For each instance of
an accepted schema: does the grammar take its text exactly where the suite says `valid`?

What must not be: an instance that is taken and not valid. What may be: valid ones that are not taken, because grammars
fix the order of properties and write each value in one way.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mistral_jax.grammar.compiler import GrammarCompiler
from mistral_jax.grammar.grammar import Grammar, GrammarError
from mistral_jax.tokenizer import load_tokenizer

DRAFTS = ("draft4", "draft6", "draft7", "draft2019-09", "draft2020-12")
_TOKENIZER = Path(__file__).parent / "goldens" / "tokenizers" / "byte_level"


@dataclass
class Result:
    """Counts of one draft."""

    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    taken: int = 0
    """Valid instances that are taken."""
    kept_out: int = 0
    """Instances that are not valid and not taken."""
    wrongly_accepted: list[str] = field(default_factory=list[str])
    wrongly_rejected: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    """Each with a reason."""


class Suite:
    """Runs the suite through real grammars over a small byte-level vocabulary."""

    def __init__(self) -> None:
        self._tokenizer = load_tokenizer(_TOKENIZER)
        self._compiler = GrammarCompiler(self._tokenizer, vocab_size=self._tokenizer.vocab_size, eos_ids=[0])

    def run(self, folder: Path, draft: str) -> Result:
        result = Result()
        for file, case in _cases(folder / "tests" / draft):
            name = f"{draft}/{file}: {case['description']}"
            try:
                compiled = self._compiler.compile(Grammar.json_schema(json.dumps(case["schema"])))
            except GrammarError as error:
                result.refused[_reason(str(error))] += 1
                continue
            result.accepted += 1
            for test in case["tests"]:
                where = f"{name}: {test['description']}"
                takes = self._takes(compiled, json.dumps(test["data"], ensure_ascii=False))
                if takes and test["valid"]:
                    result.taken += 1
                elif not takes and not test["valid"]:
                    result.kept_out += 1
                elif takes:
                    result.wrongly_accepted.append(f"{where}: {json.dumps(test['data'])}")
                else:
                    result.wrongly_rejected.append((where, self._why(compiled, file, test["data"])))
        return result

    def _takes(self, compiled: Any, text: str) -> bool:
        constraint = compiled.start(at_start=False)
        try:
            tokens = self._tokenizer.encode(text, at_start=False)
        except UnicodeEncodeError:
            return False
        matcher = constraint._matcher
        if matcher.validate_tokens(tokens) < len(tokens):
            return False
        return matcher.consume_tokens(tokens) and matcher.is_accepting()

    def _why(self, compiled: Any, file: str, data: Any) -> str:
        for other in itertools.islice(_reordered(data), 200):
            if self._takes(compiled, json.dumps(other, ensure_ascii=False)):
                return "another order of properties is taken"
        if self._takes(compiled, re.sub(r"(\d)\.0\b", r"\1", json.dumps(data, ensure_ascii=False))):
            return "1.0 is written as 1"
        if "format" in file:
            return "formats are held, or held more strictly"
        return "other"


def _cases(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted(folder.rglob("*.json")):
        for case in json.loads(path.read_text()):
            yield str(path.relative_to(folder).with_suffix("")), case


def _reordered(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        for pairs in itertools.permutations(value.items()):
            for inner in itertools.product(*(_reordered(item) for _, item in pairs)):
                yield dict(zip((key for key, _ in pairs), inner, strict=True))
    elif isinstance(value, list):
        yield from (list(items) for items in itertools.product(*(_reordered(item) for item in value)))
    else:
        yield value


def _reason(message: str) -> str:
    found = re.match(r"The schema's `([^`]+)`", message)
    return f"`{found[1]}`" if found else message.partition(":")[0][:80]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--list", action="store_true", help="list each instance that is wrongly accepted or rejected")
    arguments = parser.parse_args()
    suite, results = Suite(), dict[str, Result]()
    for draft in DRAFTS:
        results[draft] = suite.run(arguments.folder, draft)
    print("| draft | schemas | accepted | refused | taken | kept out | wrongly accepted | wrongly rejected |")
    print("|---|---|---|---|---|---|---|---|")
    for draft, result in results.items():
        refused = result.refused.total()
        print(
            f"| {draft} | {result.accepted + refused} | {result.accepted} | {refused} | {result.taken} "
            f"| {result.kept_out} | {len(result.wrongly_accepted)} | {len(result.wrongly_rejected)} |"
        )
    refused = sum((result.refused for result in results.values()), Counter[str]())
    print("\nrefused by: " + ", ".join(f"{name} {number}" for name, number in refused.most_common()))
    why = Counter(reason for result in results.values() for _, reason in result.wrongly_rejected)
    print("wrongly rejected because: " + ", ".join(f"{name} {number}" for name, number in why.most_common()))
    if arguments.list:
        for result in results.values():
            for line in result.wrongly_accepted:
                print("ACCEPTED", line)
            for line, reason in result.wrongly_rejected:
                print("rejected", line, f"({reason})")


if __name__ == "__main__":
    main()
