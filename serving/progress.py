"""Progress bars on standard error while a model loads and its programs compile."""

from __future__ import annotations

import contextlib
from typing import Any

from tqdm import tqdm

from serving.request import EngineState


class TerminalProgress:
    """One bar for loading and one for compiling. Called on the engine's thread, with a state, a detail and a share done.

    Where standard error cannot be written to (its reader has gone), nothing is shown; a model loads all the same.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._state: EngineState | None = None

    def __call__(self, state: EngineState, detail: str, progress: float | None) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            self._show(state, detail, progress)

    def _show(self, state: EngineState, detail: str, progress: float | None) -> None:
        if state is not self._state:
            self.close()
            self._state = state
        if progress is None:
            return
        if self._bar is None:
            self._bar = tqdm(total=100, bar_format="{desc} {percentage:3.0f}% |{bar:30}| {elapsed}", leave=True)
        self._bar.set_description_str(detail, refresh=False)
        self._bar.update(100 * progress - self._bar.n)
        if progress >= 1.0:
            self.close()

    def close(self) -> None:
        """Leave the bar as it is and write no more to it."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
