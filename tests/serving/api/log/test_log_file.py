"""The file of `--log`: whose it is, what a slow or full disk costs, and how it is rotated."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import serving.api.log.log_file
from serving.api.log.log_file import CLOSE_TIMEOUT, LogFile
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, running, wait_for

pytestmark = pytest.mark.skipif(os.name != "posix", reason="POSIX permissions and FIFOs")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[LogFile]:
    log = LogFile(path)
    try:
        yield log
    finally:
        log.close(0.2)


def write(log: LogFile, *lines: str) -> None:
    for line in lines:
        log.write(line.encode, len(line))


def written(log: LogFile, path: Path, *lines: str) -> None:
    """Write lines and wait until the file ends with them."""
    write(log, *lines)
    wait_for(lambda: path.exists() and path.read_text().splitlines()[-len(lines) :] == list(lines))


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.mark.usefixtures("open_umask")
def test_a_new_file_is_its_owners_only(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with opened(path) as log:
        assert mode_of(path) == 0o600
        path.rename(tmp_path / "log.1")
        written(log, path, "x")
        assert mode_of(path) == 0o600


@pytest.mark.parametrize(("before", "after"), [(0o644, 0o640), (0o666, 0o660), (0o604, 0o600), (0o640, 0o640)])
def test_of_a_file_that_was_there_others_lose_what_they_may_do(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, before: int, after: int
) -> None:
    path = tmp_path / "log"
    path.touch()
    path.chmod(before)
    with opened(path):
        assert mode_of(path) == after
    assert ("every user of this machine had access" in caplog.text) == (before != after)


def test_a_folder_and_a_fifo_without_a_reader_are_refused_at_once(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    start = time.monotonic()
    for path, reason in ((tmp_path, "it is a folder"), (fifo, "a FIFO that nobody reads")):
        with pytest.raises(OSError, match=rf"--log {path}: cannot write there: .*{reason}") as error:
            LogFile(path)
        assert "\n" not in str(error.value)
    assert time.monotonic() - start < 20


def test_a_fifo_with_a_reader_gets_the_lines(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with opened(fifo) as log:
            write(log, "one", "two")
        assert os.read(reader, 100) == b"one\ntwo\n"
    finally:
        os.close(reader)


def test_a_stuck_disk_costs_lines_that_are_counted_and_nobodys_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving.api.log.log_file, "MAX_WAITING_LINES", 50)
    monkeypatch.setattr(serving.api.log.log_file, "MAX_WAITING_BYTES", 20_000)
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)  # which reads nothing for now
    with opened(fifo) as log:
        start = time.monotonic()
        write(log, *["y" * 100] * 5000)
        assert time.monotonic() - start < 30
        assert 1000 < log.lost < 5000
        assert caplog.text.count("lines are being lost") == 1
        os.set_blocking(reader, True)
        threading.Thread(target=lambda: [None for _ in iter(lambda: os.read(reader, 65536), b"")]).start()
        wait_for(lambda: not log._waiting)
        lost = log.lost
        write(log, "z")
        wait_for(lambda: not log._waiting)
        assert log.lost == lost
    assert f"{lost} lines were lost" in caplog.text


def test_large_lines_are_bounded_by_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.api.log.log_file, "MAX_WAITING_BYTES", 1000)
    with opened(tmp_path / "log") as log:
        log.write(lambda: b"too large", 1001)
        assert log.lost == 1
        log.write(lambda: b"not too large", 1000)
    assert (tmp_path / "log").read_text() == "not too large\n"


def test_closing_does_not_wait_for_a_stuck_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    log = LogFile(fifo)
    write(log, *["y" * 1000] * 200)
    start = time.monotonic()
    log.close(0.1)
    assert time.monotonic() - start < CLOSE_TIMEOUT - 0.5  # what it would wait without the argument
    assert "lines were lost" in caplog.text
    os.close(reader)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    with opened(Path("/dev/full")) as log:
        write(log, *"abc")
        wait_for(lambda: log.lost == 3)
    assert caplog.text.count("/dev/full: cannot write: No space left") == 1


def test_a_line_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    with opened(path) as log:
        system_write = os.write
        answers = iter([3, OSError(28, "No space left on device")])

        def full(descriptor: int, data: memoryview) -> int:
            answer = next(answers, None)
            if isinstance(answer, OSError):
                raise answer
            return system_write(descriptor, data if answer is None else data[:answer])

        monkeypatch.setattr(serving.api.log.log_file.os, "write", full)
        write(log, "first")
        wait_for(lambda: log.lost == 1)
        written(log, path, "second")
    assert path.read_text() == "fir\nsecond\n"


def test_a_renamed_file_is_made_again(tmp_path: Path) -> None:
    path, old = tmp_path / "log", tmp_path / "log.1"
    with opened(path) as log:
        written(log, path, "one")
        path.rename(old)
        written(log, path, "two")
        path.rename(tmp_path / "log.2")
        path.touch()  # as logrotate's `create` does
        path.chmod(0o644)
        written(log, path, "three")
        assert mode_of(path) == 0o640
        path.unlink()
        written(log, path, "four")
    assert old.read_text() == "one\n"
    assert (tmp_path / "log.2").read_text() == "two\n"
    assert path.read_text() == "four\n"


def test_a_file_that_is_emptied_in_place_goes_on_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with opened(path) as log:
        written(log, path, "one", "two")
        os.truncate(path, 0)
        written(log, path, "three")
    assert path.read_bytes() == b"three\n"


def test_as_long_as_the_path_cannot_be_opened_the_old_file_gets_the_lines(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    path, moved = folder / "log", tmp_path / "moved"
    with opened(path) as log:
        written(log, path, "one")
        folder.rename(moved)
        written(log, moved / "log", "two")
        written(log, moved / "log", "three")
        assert caplog.text.count("cannot be opened again") == 1
        folder.mkdir()
        written(log, path, "four")
        assert log.lost == 0
    assert (moved / "log").read_text() == "one\ntwo\nthree\n"


def test_it_is_opened_again_when_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mistral_jax")
    path = tmp_path / "log"
    with opened(path) as log:
        written(log, path, "one")
        log.reopen()
        written(log, path, "two")
    assert caplog.text.count("opened again") == 1


@pytest.mark.anyio
async def test_lost_lines_are_a_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(FakeEngine("a"), log=tmp_path / "log") as client:
        assert "mistral_jax_log_lines_lost_total 0.0" in (await client.get("/metrics")).text
        monkeypatch.setattr(serving.api.log.log_file, "MAX_WAITING_BYTES", 0)
        await client.post(CHAT, json={"messages": MESSAGES})
        assert "mistral_jax_log_lines_lost_total 2.0" in (await client.get("/metrics")).text
    async with running() as client:
        assert "log_lines" not in (await client.get("/metrics")).text
