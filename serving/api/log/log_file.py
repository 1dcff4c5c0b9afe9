"""The file of `--log`: JSON lines, written by a separate thread.

The file holds users' prompts, so only its owner can read it. If the disk does not keep up, lines are dropped and
counted; requests are never delayed. The file may be rotated at any time: renamed (a new one is made at its path) or
truncated in place.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

logger = logging.getLogger("mistral_jax.server")

MAX_WAITING_LINES = 16_384
MAX_WAITING_BYTES = 64 * 2**20
"""Limits of the write queue; further lines are dropped."""

CLOSE_TIMEOUT = 5.0
"""Seconds to finish writing when the server stops."""

_REPORT_EVERY = 60.0
"""Seconds between two messages about lost lines."""


class LogFile:
    """Appends lines to a file from a separate thread."""

    def __init__(self, path: Path) -> None:
        """Open or create the file.

        Raises:
          OSError: it cannot be opened, or is not a file; the message is one line that names it.
        """
        self._path = path
        try:
            self._descriptor = _open(path)
        except OSError as error:
            raise OSError(f"--log {path}: cannot write there: {_reason(error)}") from error
        _keep_private(self._descriptor, path)
        self._waiting: deque[tuple[Callable[[], bytes], int]] = deque()
        self._size = 0
        self._changed = threading.Condition()
        self._closing = False
        self._reopen = False
        self._cut = False
        """Whether the last write ended in the middle of a line."""
        self._lost = 0
        self._reported = 0
        self._reported_at = -_REPORT_EVERY
        self._cannot_reopen = False
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Lines that were dropped or could not be written."""
        return self._lost

    def write(self, line: Callable[[], bytes], size: int) -> None:
        """Queue one line and return at once.

        Args:
          line: makes the text, without the line break; called on the file's thread.
          size: approximate bytes that the line holds in memory until then.
        """
        with self._changed:
            fits = len(self._waiting) < MAX_WAITING_LINES and self._size + size <= MAX_WAITING_BYTES
            if fits and not self._closing:
                self._waiting.append((line, size))
                self._size += size
                self._changed.notify()
                return
            self._lost += 1
        self._report_lost("the disk does not keep up")

    def reopen(self) -> None:
        """Reopen the path before the next line, whether or not the file was renamed. Safe in a signal handler."""
        self._reopen = True

    def close(self, timeout: float = CLOSE_TIMEOUT) -> None:
        """Write the queued lines, for at most `timeout` seconds, then close the file."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout)
        left = len(self._waiting)
        if self._thread.is_alive():
            self._lost += left
        if self._lost > self._reported:
            logger.error("--log %s: %d lines were lost", self._path, self._lost)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    break
                line, size = self._waiting[0]
            try:
                self._follow()
                self._append(line())
            except Exception as error:
                self._lost += 1
                self._report_lost(f"cannot write: {_reason(error)}")
            with self._changed:
                self._waiting.popleft()
                self._size -= size
        try:
            os.close(self._descriptor)
        except OSError as error:
            logger.error("--log %s: cannot write: %s", self._path, _reason(error))

    def _append(self, line: bytes) -> None:
        data = memoryview((b"\n" if self._cut else b"") + line + b"\n")
        while data:
            written = os.write(self._descriptor, data)
            data = data[written:]
            self._cut = bool(data)

    def _follow(self) -> None:
        """Reopen the path if it is now another file, or none. While that fails, lines go to the old file."""
        ours = os.fstat(self._descriptor)
        if not stat.S_ISREG(ours.st_mode):
            return
        try:
            there = self._path.stat()
            if not self._reopen and (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino):
                return
        except OSError:
            pass
        try:
            descriptor = _open(self._path)
        except OSError as error:
            if not self._cannot_reopen:
                logger.error(
                    "--log %s: cannot be opened again: %s; the old file gets the lines", self._path, _reason(error)
                )
            self._cannot_reopen = True
            return
        _keep_private(descriptor, self._path)
        self._cannot_reopen = self._reopen = self._cut = False
        os.close(self._descriptor)
        self._descriptor = descriptor
        logger.info("--log %s: opened again", self._path)

    def _report_lost(self, reason: str) -> None:
        now = time.monotonic()
        if now - self._reported_at >= _REPORT_EVERY:
            self._reported_at, self._reported = now, self._lost
            logger.error("--log %s: %s; lines are being lost (%d so far)", self._path, reason, self._lost)


def _open(path: Path) -> int:
    """A descriptor that appends to the file; a new file is readable only by its owner.

    Raises:
      OSError: it cannot be opened, is a folder, or is a FIFO without a reader.
    """
    # Non-blocking open: a FIFO without a reader would block the start.
    descriptor = os.open(
        path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY, 0o600
    )
    os.set_blocking(descriptor, True)
    return descriptor


def _keep_private(descriptor: int, path: Path) -> None:
    """Remove all other users' permissions from an existing file. Those of the group stay: they were granted on purpose,
    to collect logs."""
    status = os.fstat(descriptor)
    mode = stat.S_IMODE(status.st_mode)
    if os.name != "posix" or not stat.S_ISREG(status.st_mode) or not mode & 0o007:
        return
    try:
        os.fchmod(descriptor, mode & ~0o007)
    except OSError:
        logger.warning("--log %s: every user of this machine has access to it (mode %o), prompts included", path, mode)
    else:
        logger.warning(
            "--log %s: every user of this machine had access to it (mode %o); now others have none", path, mode
        )


def _reason(error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    match error.errno:
        case errno.ENXIO:
            return "it is a FIFO that nobody reads, or a socket"
        case errno.EISDIR:
            return "it is a folder; expected a file"
        case _:
            return error.strerror or str(error)
