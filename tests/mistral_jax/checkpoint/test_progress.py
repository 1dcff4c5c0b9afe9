"""Bars in a terminal, whole lines in a file."""

from __future__ import annotations

import io
import sys

import pytest

from mistral_jax.checkpoint import progress
from mistral_jax.checkpoint.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, *, every: float = 0.0) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_EVERY", every)
    with progress_bar("training", total=3, unit="steps") as bar:
        for _ in range(3):
            bar.set_postfix({"loss": "0.5"}, refresh=False)
            bar.update()
    return stream.getvalue()


def test_a_file_gets_whole_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    text = run(monkeypatch, io.StringIO())
    assert "\r" not in text
    assert "\x1b" not in text
    assert text.endswith("\n")
    assert text.splitlines()[-1].startswith("training: 100% (3 of 3 steps, 00:00")
    assert "loss=0.5" in text.splitlines()[-1]


def test_a_file_gets_none_of_what_is_done_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, io.StringIO(), every=60.0) == ""


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\rtraining: " in run(monkeypatch, Terminal())


def test_nothing_is_written_where_nothing_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    with progress_bar("training", total=1, shown=False) as bar:
        bar.update()
    assert stream.getvalue() == ""
