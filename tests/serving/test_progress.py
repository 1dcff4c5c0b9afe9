"""Progress bars while a model loads."""

from __future__ import annotations

import io
import sys

import pytest

from serving.progress import TerminalProgress
from serving.request import EngineState


def test_a_bar_for_loading_and_one_for_compiling(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress()
    progress(EngineState.LOADING, "fetching", None)
    progress(EngineState.LOADING, "loading weights: 1 of 2 MiB", 0.5)
    progress(EngineState.LOADING, "loading weights: 2 of 2 MiB", 1.0)
    progress(EngineState.WARMING_UP, "compiled 1 of 1 programs", 1.0)
    shown = capsys.readouterr().err
    assert "loading weights: 2 of 2 MiB 100%" in shown
    assert "compiled 1 of 1 programs 100%" in shown


class _Gone(io.StringIO):
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
