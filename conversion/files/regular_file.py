"""Reading files from others: regular files only, and never more bytes than such a file can need.

A pipe would block for ever on opening, a device may never end, and a large file would fill memory before it is
examined.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

_PIECE = 2**20


def open_regular(path: Path | str) -> int:
    """A descriptor of a regular file, open for reading. The caller closes it.

    Raises:
      OSError: it is missing or not readable; with a reason in `strerror` also where it is a folder, a pipe, a device or
        a socket.
      ValueError: the path is invalid, such as one with a zero byte.
    """
    # Opened without waiting, then looked at: between a look at the path and opening it, another file could take its
    # place.
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode):
        os.close(fd)
        raise OSError(0, "a folder" if stat.S_ISDIR(mode) else "no regular file")
    return fd


def read_regular(path: Path | str, *, most: int) -> bytes:
    """All bytes of a regular file that has at most `most` of them.

    Raises:
      OSError, ValueError: as `open_regular`.
      OSError: it is larger; `strerror` says so.
    """
    fd = open_regular(path)
    try:
        size = os.fstat(fd).st_size
        data = bytearray()
        if size <= most:
            # It may grow while it is read, and files of /proc have no size.
            while len(data) <= most and (piece := os.read(fd, min(_PIECE, most + 1 - len(data)))):
                data += piece
        if size > most or len(data) > most:
            raise OSError(0, f"it has {max(size, len(data)):,} bytes, where such a file has at most {most:,}")
        return bytes(data)
    finally:
        os.close(fd)


def is_file(path: Path | str) -> bool:
    """Whether there is a file. False for an impossible name, too: `Path.is_file` raises for one that is too long."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: Path | str) -> bool:
    """Whether there is a folder; False for an impossible name."""
    return os.path.isdir(path)  # noqa: PTH112


def exists(path: Path | str) -> bool:
    """Whether the path exists; False for an impossible name."""
    return os.path.exists(path)  # noqa: PTH110


def reason_of(error: Exception) -> str:
    """What an exception says, in one line of bounded length; without the path, where it is an OSError."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return shortened(" ".join(text.split()) or type(error).__name__)


def shortened(text: str, most: int = 300) -> str:
    """A text of at most `most` characters, with an ellipsis where something is left out."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def quoted(text: str) -> str:
    """A name from a file in quotes, in one line, shortened."""
    return shortened(repr(text), 200)


def plain(text: str) -> str:
    """A name from a file as it is, where it fits into a line; else `quoted`."""
    return text if text.isprintable() and len(text) <= 200 else quoted(text)
