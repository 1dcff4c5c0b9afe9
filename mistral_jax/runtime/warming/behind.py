"""Compiling the programs that no request needs yet, while others are served."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax

from mistral_jax.runtime.calls import RunnerState

if TYPE_CHECKING:
    from mistral_jax.runtime.warming.warm_up import EmptyCall

_log = logging.getLogger("mistral_jax")


class CompilingBehind:
    """One thread that compiles programs, one after another. JAX keeps them: a later call finds its program, or waits if
    it is being compiled, or compiles it itself.

    Args:
      calls: of the programs; nothing runs.
      state: only its shapes are kept.
    """

    def __init__(self, calls: Sequence[EmptyCall], state: RunnerState) -> None:
        self._calls = calls
        # The state itself is donated by every step.
        self._shapes = RunnerState(*jax.tree.map(_shape, (state.caches, state.rows)))
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def count(self) -> int:
        return len(self._calls)

    def start(self, done: Callable[[], None]) -> None:
        """Args:
        done: called on the thread once all are compiled; not if one cannot be, or after `stop`.
        """
        _log.info("compiling %d more programs, which plain completions do not need", self.count)
        self._thread = threading.Thread(target=self._run, args=(done,), name="compile", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Begin no further program. One that is being compiled cannot be interrupted."""
        self._stopped.set()

    def join(self, timeout: float) -> None:
        """Wait for the end of the thread."""
        if self._thread is not None:
            self._thread.join(timeout)

    def _run(self, done: Callable[[], None]) -> None:
        start = time.monotonic()
        try:
            for call in self._calls:
                if self._stopped.is_set():
                    return
                call(self._shapes).lower().compile()
        except Exception:
            # Whoever needs the program will get the error again.
            _log.exception("a program could not be compiled")
            return
        _log.info("the other %d programs are compiled (%.1f s)", len(self._calls), time.monotonic() - start)
        done()


def _shape(x: jax.Array) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
