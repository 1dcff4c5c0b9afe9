"""Benchmarks are run by hand: what they import should still be there when somebody does."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
# `time_*.py` run other programs, in environments of their own.
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if not path.name.startswith(("__", "time_")))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_imported(name: str) -> None:
    assert callable(importlib.import_module(f"benchmarks.{name}").main)
