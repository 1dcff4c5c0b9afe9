"""Structured output and forced tool calls of the real server, with random weights and real tokenizers. More of them:
`python -m tests.structured_load`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.structured_load import run


@pytest.mark.parametrize("kind", ["sentencepiece"])
def test_whatever_the_weights_say_completions_are_valid(tmp_path: Path, kind: str) -> None:
    counts = run(tmp_path, kind, schemas=10, calls=10, again=5)
    for count in counts.values():
        assert count["valid"] >= 10
        assert count["same alone"] == 2
        assert count["cut"] <= 1
