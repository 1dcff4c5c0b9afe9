"""New files and folders: whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from conversion.output_files import OutputError, new_file, new_folder

WRITER = """
import sys, time
from pathlib import Path
from conversion.output_files import new_file, new_folder
path, kind = Path(sys.argv[1]), sys.argv[2]
if kind == "file":
    with new_file(path, size=10) as file:
        file.write(b"half")
        file.flush()
        print("writing", flush=True)
        time.sleep(60)
else:
    with new_folder(path, size=10, replaceable=lambda name: True) as folder:
        (folder / "half").write_text("half")
        print("writing", flush=True)
        time.sleep(60)
"""


def start_writing(path: Path, kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path), kind], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    return process


def finish(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def any_name(_: str) -> bool:
    return True


def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with new_file(path, size=5) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["x.gguf"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_file(tmp_path / "x", size=1) as file:
        file.write(b"half")
        raise error
    with pytest.raises(error), new_folder(tmp_path / "y", size=1, replaceable=any_name) as folder:
        (folder / "half").write_text("half")
        raise error
    assert os.listdir(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"), new_file(tmp_path / "x", size=1):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_killed_while_writing_leaves_a_hidden_rest_that_the_next_run_clears_away(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    finish(start_writing(path, kind), signal.SIGKILL)
    assert os.listdir(tmp_path) == [".x.partial"]
    if kind == "file":
        with new_file(path, size=1) as file:
            file.write(b"y")
        assert path.read_bytes() == b"y"
    else:
        with new_folder(path, size=1, replaceable=any_name) as folder:
            assert os.listdir(folder) == []
            (folder / "whole").touch()
        assert os.listdir(path) == ["whole"]
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_two_processes_do_not_write_the_same(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    process = start_writing(path, kind)
    try:
        with pytest.raises(OutputError, match="another process"):
            if kind == "file":
                with new_file(path, size=1):
                    pass
            else:
                with new_folder(path, size=1, replaceable=any_name):
                    pass
        assert os.listdir(tmp_path) == [".x.partial"]
    finally:
        finish(process, signal.SIGKILL)


def test_what_exists_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"), new_file(path, size=1):
        pytest.fail("not reached")
    with pytest.raises(RuntimeError), new_file(path, size=1, overwrite=True):
        raise RuntimeError
    assert path.read_bytes() == b"old"
    with new_file(path, size=1, overwrite=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(OutputError, match="exists already"), new_file(path, size=1):
        path.write_bytes(b"other")
    assert path.read_bytes() == b"other"
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.mkdir()
    (path / "old.json").write_text("old")
    with new_folder(path, size=1, overwrite=True, replaceable=lambda name: name == "old.json") as folder:
        (folder / "new.json").write_text("new")
        assert os.listdir(path) == ["old.json"]
    assert os.listdir(path) == ["new.json"]
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("other", ["photo.jpg", "folder/"])
def test_a_folder_with_other_things_in_it_is_not_overwritten(tmp_path: Path, other: str) -> None:
    path = tmp_path / "x"
    (path / other).mkdir(parents=True) if other.endswith("/") else (path.mkdir(), (path / other).touch())
    with (
        pytest.raises(OutputError, match="is not overwritten"),
        new_folder(path, size=1, overwrite=True, replaceable=lambda name: name == "config.json"),
    ):
        pytest.fail("not reached")
    assert len(os.listdir(path)) == 1


def test_bad_destinations(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"), new_file(tmp_path / "no" / "x", size=1):
        pytest.fail("not reached")
    with pytest.raises(OutputError, match="GiB are free"), new_file(tmp_path / "x", size=2**60):
        pytest.fail("not reached")
    with pytest.raises(OutputError, match="is a folder"), new_file(tmp_path, size=1, overwrite=True):
        pytest.fail("not reached")
    (tmp_path / "file").touch()
    with (
        pytest.raises(OutputError, match="is a file"),
        new_folder(tmp_path / "file", size=1, overwrite=True, replaceable=any_name),
    ):
        pytest.fail("not reached")
