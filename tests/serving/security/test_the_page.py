"""docs/security.md names tests that exist, and all of those here."""

from __future__ import annotations

import ast
import re
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "security.md").read_text("utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(test_\w*\*?)`", PAGE)


@cache
def functions_of(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text("utf-8"))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(node.name for node in functions if node.name.startswith("test_"))


def test_every_test_that_the_page_names_exists() -> None:
    assert len(NAMED) > 40
    for path, name in NAMED:
        assert any(fnmatchcase(test, name) for test in functions_of(path)), f"{path}::{name}"


def test_every_security_test_is_on_the_page() -> None:
    for file in sorted(Path(__file__).parent.glob("test_*.py")):
        path = str(file.relative_to(ROOT))
        names = [name for named, name in NAMED if named == path]
        if file != Path(__file__):
            missing = [test for test in functions_of(path) if not any(fnmatchcase(test, name) for name in names)]
            assert missing == [], path


def test_every_row_has_a_rule_and_tests() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and "::test_" in line]
    assert len(rows) >= 20
    for row in rows:
        _, name, rule, tests, _ = row.split("|")
        assert name.strip()
        assert len(rule.strip()) > 20
        assert "`tests/" in tests
