"""The bytes of one GGUF file: checked reads at a position, and memory maps on request.

Opening a file reads and does not map: a process that touches a mapped page which another program has truncated is
killed, whereas a short read is an error like any other. Mapped pages also count as memory of the process.
"""

from __future__ import annotations

import mmap
import os
import stat
import weakref
from pathlib import Path

from conversion.weights.tensor_source import WeightFileError

_PIECE = 64 * 2**20

FileState = tuple[int, int, int, int, int]
"""Device, inode, size, and the times of the last changes of contents and inode in nanoseconds."""


class GGUFError(WeightFileError):
    """A GGUF file is missing, broken, truncated, or of a kind that is not implemented."""


class _Descriptor:
    """A file descriptor that is closed when nothing refers to this object any more.

    A reading thread holds a reference, so that closing the file cannot reuse the number for another file during the
    read.
    """

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self._finalizer = weakref.finalize(self, os.close, self.fd)


class OpenedFile:
    """A regular file, open for reading from several threads.

    Raises:
      GGUFError: it is missing, a folder, not a regular file, or not readable.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            # A pipe would block on opening.
            mode = self.path.stat().st_mode
            if stat.S_ISDIR(mode):
                raise GGUFError(_about_folder(self.path))
            if not stat.S_ISREG(mode):
                raise GGUFError(
                    f"{self.path} is no regular file; a GGUF file is read at any position, so save it first"
                )
            self._descriptor: _Descriptor | None = _Descriptor(self.path)
            found = os.fstat(self._descriptor.fd)
            self.size = found.st_size
            self.state: FileState = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            """Changes with the contents, but for changes within the resolution of the file system's clock."""
        except (OSError, ValueError) as error:
            if isinstance(error, GGUFError):
                raise
            reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise GGUFError(f"cannot open GGUF file {self.path}: {reason}") from error
        self._map: mmap.mmap | None = None

    def read(self, start: int, count: int, what: str) -> bytes:
        """Bytes [start, start + count); `what` names them in the message if the file has become shorter."""
        out = bytearray(count)
        self.read_into(memoryview(out), start, what)
        return bytes(out)

    def read_into(self, out: memoryview, start: int, what: str) -> None:
        """Fill `out`, a view of bytes, from position `start`.

        Raises:
          GGUFError: the file is shorter than it was, cannot be read, or has been closed.
        """
        descriptor = self._alive()
        done = 0
        while done < len(out):
            try:
                count = os.preadv(descriptor.fd, [out[done : done + _PIECE]], start + done)
            except OSError as error:
                raise GGUFError(f"{self.path}: reading {what} at byte {start + done}: {error.strerror}") from error
            if count == 0:
                raise GGUFError(self._shrunk(what, start + len(out), start + done))
            done += count

    def mapped(self, stop: int, what: str) -> mmap.mmap:
        """The whole file, mapped for reading. It lives as long as arrays over it do.

        Raises:
          GGUFError: the file is now shorter than `stop` bytes, cannot be mapped, or has been closed.
        """
        descriptor = self._alive()
        try:
            size = os.fstat(descriptor.fd).st_size
            if size < stop:
                raise GGUFError(self._shrunk(what, stop, size))
            map = self._map
            if map is None or len(map) < stop:
                map = self._map = mmap.mmap(descriptor.fd, 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise GGUFError(f"{self.path} cannot be mapped: {error.strerror}; read the tensors instead") from error
        return map

    def close(self) -> None:
        """Close the file; reads in progress in other threads finish first, arrays over the map stay valid."""
        self._descriptor = None
        self._map = None

    def _alive(self) -> _Descriptor:
        descriptor = self._descriptor
        if descriptor is None:
            raise GGUFError(f"{self.path} has been closed; open it again to read from it")
        return descriptor

    def _shrunk(self, what: str, needed: int, found: int) -> str:
        return (
            f"{self.path}: the file ends inside {what}: at byte {found}, where {needed} are needed and {self.size} "
            "were there when it was opened. Something has truncated it since; wait until it is complete, and reopen it"
        )


def _about_folder(path: Path) -> str:
    found = sorted(file.name for file in path.glob("*.gguf"))
    if not found:
        return f"{path} is a folder without GGUF files; a GGUF model is one file, or parts named -00001-of-000NN.gguf"
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"{path} is a folder; name the file itself, one of {', '.join(found[:5])}{more}"
