"""New files and folders that appear complete or not at all.

Output is written under a hidden name beside its destination, `.NAME.partial`, and renamed once its bytes are on disk.
An error, Ctrl-C or SIGTERM removes it. After a `kill -9` or a power cut it stays, hidden and recognisably partial; the
next run for the same destination removes it. A lock, which ends with the process that holds it, distinguishes such a
remnant from the output of a run in progress.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from conversion.files.regular_file import exists, is_folder

_SPARE_BYTES = 2**20
"""Bytes kept free on the disk beyond the output: headers, JSON files, the file system's own blocks."""

Replaceable = Callable[[str], bool]
"""Whether a file of this name may be deleted when a folder is overwritten."""


class OutputError(OSError):
    """The output cannot be written: it exists, there is no room, or another process is writing it."""


@contextmanager
def new_file(path: Path, *, size: int, overwrite: bool = False) -> Generator[BinaryIO]:
    """A binary file to write to. It becomes `path` when the block ends, and is removed if the block raises.

    Args:
      size: approximate bytes to write: refused now if the disk has less room.
      overwrite: replace a file that has this name already.
    Raises:
      OutputError: see the class; also where the disk fills up while writing.
    """
    check_destination(path, size=size, overwrite=overwrite)
    if is_folder(path):
        raise OutputError(f"{path} is a folder; expected the name of a file to write")
    partial = _partial_name(path)
    fd = _locked(partial, path, folder=False)
    with os.fdopen(fd, "wb") as file:
        try:
            os.ftruncate(fd, 0)
            with _full_disk_told(path):
                yield file
                file.flush()
                os.fsync(fd)
            if not overwrite:
                _check_absent(path)  # it may have appeared in the meantime
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _sync_folder(path.parent)


@contextmanager
def new_folder(
    path: Path,
    *,
    size: int,
    overwrite: bool = False,
    replaceable: Replaceable,
    replaceable_below: Replaceable | None = None,
) -> Generator[Path]:
    """A folder to write files into. It becomes `path` when the block ends, and is removed if the block raises.

    Args:
      size, overwrite: see `new_file`.
      replaceable: a folder is overwritten only if it contains only files with such names, so that no other file of a
        user is lost.
      replaceable_below: the same for files in its folders; None: it is not overwritten if it has folders.
    Raises:
      OutputError: see `new_file`; also where a folder that is to be overwritten holds other files.
    """
    check_destination(path, size=size, overwrite=overwrite)
    if exists(path) and not is_folder(path):
        raise OutputError(f"{path} is a file; expected the name of a folder to write")
    partial, old = _partial_name(path), path.with_name(f".{path.name}.old")
    _check_replaceable(path, replaceable, replaceable_below)
    fd = _locked(partial, path, folder=True)
    try:
        _empty(partial)
        with _full_disk_told(path):
            yield partial
            _sync_all(partial)
        if not overwrite:
            _check_absent(path)
        _put_in_place(partial, path, old)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(fd)
    _sync_folder(path.parent)
    if exists(old):
        shutil.rmtree(old)


def _put_in_place(partial: Path, path: Path, old: Path) -> None:
    if not exists(path):
        partial.rename(path)
        return
    if exists(old):
        shutil.rmtree(old)
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise


def check_destination(path: Path, *, size: int, overwrite: bool) -> None:
    """Refuse a destination that exists (unless `overwrite`), whose folder does not, or whose disk has less than `size`
    bytes free.

    Raises:
      OutputError: says which.
    """
    if not path.name or path.name == "..":
        raise OutputError(f"{path} is no name for something new; name the file or folder to write")
    if not overwrite:
        _check_absent(path)
    parent = path.absolute().parent
    if not is_folder(parent):
        raise OutputError(f"the folder {path.parent} does not exist; create it first")
    free = shutil.disk_usage(parent).free
    if free < size + _SPARE_BYTES:
        unit, name = (2**30, "GiB") if max(size, free) >= 2**30 else (2**20, "MiB")
        raise OutputError(
            f"{path} would take {size / unit:,.1f} {name}, and {free / unit:,.1f} {name} are free there; "
            "choose another disk or a smaller type"
        )


def _check_absent(path: Path) -> None:
    if os.path.lexists(path):
        raise OutputError(f"{path} exists already; choose another name, or overwrite it (--overwrite)")


def _check_replaceable(folder: Path, replaceable: Replaceable, below: Replaceable | None) -> None:
    if is_folder(folder):
        for entry in folder.iterdir():
            if entry.is_dir() and below is not None:
                _check_replaceable(entry, below, None)
            elif entry.is_dir() or not replaceable(entry.name):
                raise OutputError(
                    f"{folder} is not overwritten, since {entry.name} in it is not part of a "
                    "converted model; choose another name"
                )


def _partial_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def _locked(partial: Path, path: Path, *, folder: bool) -> int:
    """A locked descriptor of the partial file or folder, which is created if needed. Nothing else writes to it or
    renames it."""
    while True:
        if folder:
            partial.mkdir(exist_ok=True)
        flags = os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT
        try:
            fd = os.open(partial, flags | os.O_CLOEXEC, 0o666)
        except FileNotFoundError:
            continue  # removed by its last holder since
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(fd)
            raise OutputError(f"{path} is being written by another process") from error
        except OSError:
            pass  # a file system without locks
        # Its last holder may have renamed or removed it between our opening and our locking.
        if exists(partial) and os.path.samestat(partial.stat(), os.fstat(fd)):
            return fd
        os.close(fd)


@contextmanager
def _full_disk_told(path: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(f"the disk is full: {path} was not written; make room and run it again") from error


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _sync_all(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir():
            _sync_all(entry)
        else:
            _sync(entry)
    _sync_folder(folder)


def _sync(file: Path) -> None:
    with file.open("rb") as opened:
        os.fsync(opened.fileno())


def _sync_folder(folder: Path) -> None:
    """Flush a folder, so that names are on disk too. Some file systems refuse this for folders and do not need it."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
