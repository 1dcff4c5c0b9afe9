"""Progress bars while a model loads."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from serving.build.progress import TerminalProgress
from serving.engine.messages import EngineState


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def _load(progress: TerminalProgress) -> None:
    progress(EngineState.LOADING, "fetching", None)
    progress(EngineState.LOADING, "loading weights: 1 of 2 MiB", 0.5)
    progress(EngineState.LOADING, "loading weights: 2 of 2 MiB", 1.0)
    progress(EngineState.WARMING_UP, "compiled 1 of 1 programs", 1.0)


def test_a_bar_for_loading_and_one_for_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = _Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    _load(TerminalProgress())
    shown = stream.getvalue()
    assert "loading weights: 2 of 2 MiB 100%" in shown
    assert "compiled 1 of 1 programs 100%" in shown


def test_where_there_is_no_terminal_the_log_has_a_line_for_each(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "mistral_jax"):
        _load(TerminalProgress())
    lines = [record.getMessage() for record in caplog.records]
    assert [line.partition(" (100 %, ")[0] for line in lines] == [
        "loading weights: 2 of 2 MiB",
        "compiled 1 of 1 programs",
    ]
    assert capsys.readouterr().err == ""


class _Gone(_Terminal):
    def write(self, _text: str) -> int:
        raise BrokenPipeError("nobody reads this")

    def flush(self) -> None:
        raise BrokenPipeError("nobody reads this")


@pytest.mark.parametrize("closed", [False, True])
def test_nobody_reading_standard_error_stops_no_load(monkeypatch: pytest.MonkeyPatch, closed: bool) -> None:
    stream = _Gone()
    if closed:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    progress = TerminalProgress()
    for share in (0.0, 0.5, 1.0):
        progress(EngineState.LOADING, "loading weights", share)
    progress(EngineState.WARMING_UP, "compiled 1 of 1 programs", 1.0)
