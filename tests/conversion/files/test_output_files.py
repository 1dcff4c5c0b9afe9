"""New files and folders: whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conversion.files.output_files import OutputError, new_file, new_folder

WRITER = """
import sys, time
from pathlib import Path
from conversion.files.output_files import new_file, new_folder
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


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write_file(path: Path, *, error: type[BaseException] | None = None, overwrite: bool = False) -> None:
    with new_file(path, size=5, overwrite=overwrite) as file:
        file.write(b"whole")
        if error is not None:
            raise error


def write_folder(path: Path, *, error: type[BaseException] | None = None, overwrite: bool = False) -> None:
    with new_folder(path, size=5, overwrite=overwrite, replaceable=lambda name: name.endswith(".json")) as folder:
        assert names(folder) == []
        (folder / "new.json").write_text("whole")
        if error is not None:
            raise error


def test_a_file_has_its_name_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    with new_file(path, size=5) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole"
    assert names(tmp_path) == ["x.gguf"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("write", [write_file, write_folder])
def test_an_error_leaves_nothing(tmp_path: Path, write: Callable[..., None], error: type[BaseException]) -> None:
    with pytest.raises(error):
        write(tmp_path / "x", error=error)
    assert names(tmp_path) == []


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="the disk is full"), new_file(tmp_path / "x", size=1):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert names(tmp_path) == []


@pytest.mark.parametrize(("kind", "write"), [("file", write_file), ("folder", write_folder)])
def test_killed_while_writing_leaves_a_hidden_rest_that_the_next_run_clears_away(
    tmp_path: Path, kind: str, write: Callable[..., None]
) -> None:
    path = tmp_path / "x"
    finish(start_writing(path, kind), signal.SIGKILL)
    assert names(tmp_path) == [".x.partial"]
    write(path)
    assert names(tmp_path) == ["x"]
    assert path.read_bytes() == b"whole" if kind == "file" else names(path) == ["new.json"]


@pytest.mark.parametrize(("kind", "write"), [("file", write_file), ("folder", write_folder)])
def test_two_processes_do_not_write_the_same(tmp_path: Path, kind: str, write: Callable[..., None]) -> None:
    path = tmp_path / "x"
    process = start_writing(path, kind)
    try:
        with pytest.raises(OutputError, match="another process"):
            write(path)
        assert names(tmp_path) == [".x.partial"]
    finally:
        finish(process, signal.SIGKILL)


def test_what_exists_is_kept_unless_it_is_to_be_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match="exists already"):
        write_file(path)
    with pytest.raises(RuntimeError):
        write_file(path, error=RuntimeError, overwrite=True)
    assert path.read_bytes() == b"old"
    write_file(path, overwrite=True)
    assert path.read_bytes() == b"whole"


def test_what_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(OutputError, match="exists already"), new_file(path, size=1):
        path.write_bytes(b"other")
    assert path.read_bytes() == b"other"
    assert names(tmp_path) == ["x"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.mkdir()
    (path / "old.json").write_text("old")
    with pytest.raises(OutputError, match="exists already"):
        write_folder(path)
    with pytest.raises(RuntimeError):
        write_folder(path, error=RuntimeError, overwrite=True)
    assert names(path) == ["old.json"]
    write_folder(path, overwrite=True)
    assert names(path) == ["new.json"]
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize("other", ["photo.jpg", "folder.json/x.json"])
def test_a_folder_with_other_things_in_it_is_not_overwritten(tmp_path: Path, other: str) -> None:
    path = tmp_path / "x" / other
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(OutputError, match="is not overwritten"):
        write_folder(tmp_path / "x", overwrite=True)
    assert path.exists()


def test_folders_in_a_folder_are_replaced_where_that_is_allowed(tmp_path: Path) -> None:
    def write() -> None:
        with new_folder(
            tmp_path / "x",
            size=5,
            overwrite=True,
            replaceable=lambda name: name == "a",
            replaceable_below=lambda name: name == "b",
        ) as folder:
            (folder / "sub").mkdir()
            (folder / "sub" / "b").write_text("new")

    write()
    write()
    assert (tmp_path / "x" / "sub" / "b").read_text() == "new"
    for other in ("b", "sub/a", "sub/sub/b"):
        path = tmp_path / "x" / other
        path.parent.mkdir(exist_ok=True)
        path.touch()
        with pytest.raises(OutputError, match="is not overwritten"):
            write()
        path.unlink()
        assert (tmp_path / "x" / "sub" / "b").exists()
        if other == "sub/sub/b":
            path.parent.rmdir()


def test_bad_destinations(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not exist"):
        write_file(tmp_path / "no" / "x")
    with pytest.raises(OutputError, match=r"GiB, and .* (GiB|MiB) are free"), new_file(tmp_path / "x", size=2**60):
        pytest.fail("not reached")
    with pytest.raises(OutputError, match="is a folder"):
        write_file(tmp_path, overwrite=True)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="is a file"):
        write_folder(tmp_path / "file", overwrite=True)
