"""The source of the packages that a server process imports, as syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[3]
PACKAGES = ("serving", "mistral_jax", "conversion")


@cache
def modules() -> dict[str, ast.Module]:
    """By path relative to the project."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {str(file.relative_to(ROOT)): ast.parse(file.read_text("utf-8")) for file in files}


def imports(tree: ast.Module) -> Iterator[str]:
    """Full names of what is imported, anywhere in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def calls(tree: ast.Module) -> Iterator[tuple[str, ast.Call]]:
    """The calls in a module, with the name of what is called: `eval`, `os.system`, `x.load`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def is_of(name: str, packages: frozenset[str] | set[str]) -> bool:
    """Whether a full name is one of these packages, or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)
