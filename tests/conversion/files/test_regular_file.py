"""Whether a name from outside is a file: an answer for every name, also for those that no file can have."""

from __future__ import annotations

from pathlib import Path

import pytest

from conversion.files.regular_file import exists, is_file, is_folder


def test_files_and_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    assert [is_file(tmp_path), is_folder(tmp_path), exists(tmp_path)] == [False, True, True]
    assert [is_file(tmp_path / "file"), is_folder(tmp_path / "file"), exists(tmp_path / "file")] == [True, False, True]
    assert not exists(tmp_path / "link")


@pytest.mark.parametrize("name", ["a" * 256, "é" * 130, "a/" * 4000, "zero\0byte", "file/below"])
def test_names_that_no_file_can_have(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    assert not is_file(tmp_path / name)
    assert not is_folder(tmp_path / name)
    assert not exists(str(tmp_path / name))
