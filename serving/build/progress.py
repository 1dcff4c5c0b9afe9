"""How far loading and compiling are, on standard error: a bar in a terminal; in a file or a pipe lines of the log."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from typing import Any

from tqdm import tqdm

from mistral_jax.checkpoint.progress import LINE_EVERY, draws_bars
from serving.engine.messages import EngineState

logger = logging.getLogger("mistral_jax.server")


class TerminalProgress:
    """One bar for loading and one for compiling. Called on the engine's thread, with a state, a detail and a share
    done.

    Where there is no terminal, each has a line when it is done, and one every `LINE_EVERY` seconds before. Where
    standard error cannot be written to (its reader has gone), nothing is shown; a model loads all the same.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._state: EngineState | None = None
        self._begun = self._told = 0.0

    def __call__(self, state: EngineState, detail: str, progress: float | None) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            if state is not self._state:
                self.close()
                self._state = state
                self._begun = self._told = time.monotonic()
            if progress is None:
                return
            if draws_bars(sys.stderr):
                self._show(detail, progress)
            else:
                self._tell(detail, progress)

    def _show(self, detail: str, progress: float) -> None:
        if self._bar is None:
            self._bar = tqdm(total=100, bar_format="{desc} {percentage:3.0f}% |{bar:30}| {elapsed}", leave=True)
        self._bar.set_description_str(detail, refresh=False)
        self._bar.update(100 * progress - self._bar.n)
        if progress >= 1.0:
            self.close()

    def _tell(self, detail: str, progress: float) -> None:
        now = time.monotonic()
        if progress >= 1.0 or now - self._told >= LINE_EVERY:
            self._told = now
            logger.info("%s (%.0f %%, %.1f s)", detail, 100 * progress, now - self._begun)

    def close(self) -> None:
        """Leave the bar as it is and write no more to it."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
