"""Progress of loading and compiling on standard error: a bar in a terminal, log lines in a file or a pipe."""

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
    """One bar for loading and one for compiling. Called on the engine's thread, with state, detail and progress (0 to
    1).

    Without a terminal, each logs a line every `LINE_EVERY` seconds and one when done. If standard error cannot be
    written to (its reader has gone), nothing is shown, and the model still loads.
    """

    def __init__(self) -> None:
        self._bar: tqdm[Any] | None = None
        self._state: EngineState | None = None
        self._begun = self._logged_at = 0.0

    def __call__(self, state: EngineState, detail: str, progress: float | None) -> None:
        with contextlib.suppress(OSError, ValueError):  # ValueError: the stream is closed
            if state is not self._state:
                self.close()
                self._state = state
                self._begun = self._logged_at = time.monotonic()
            if progress is None:
                return
            if draws_bars(sys.stderr):
                self._show(detail, progress)
            else:
                self._log(detail, progress)

    def _show(self, detail: str, progress: float) -> None:
        if self._bar is None:
            self._bar = tqdm(total=100, bar_format="{desc} {percentage:3.0f}% |{bar:30}| {elapsed}", leave=True)
        self._bar.set_description_str(detail, refresh=False)
        self._bar.update(100 * progress - self._bar.n)
        if progress >= 1.0:
            self.close()

    def _log(self, detail: str, progress: float) -> None:
        now = time.monotonic()
        if progress >= 1.0 or now - self._logged_at >= LINE_EVERY:
            self._logged_at = now
            logger.info("%s (%.0f %%, %.1f s)", detail, 100 * progress, now - self._begun)

    def close(self) -> None:
        """Close the bar, leaving it as it is."""
        if self._bar is not None:
            self._bar.refresh()
            self._bar.close()
            self._bar = None
