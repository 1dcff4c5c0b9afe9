"""A header is read once for as long as its file stays as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from conversion.gguf.container import header
from conversion.gguf.container.file import GGUFFile
from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.load_module import load_module
from mistral_jax.hub.files import find_model
from tests.conversion.gguf_files import write_good

GOLDENS = Path(__file__).parents[3] / "goldens" / "gguf"


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files whose headers were read."""
    found: list[Path] = []
    whole: Callable[..., header.Header] = header._HeadReader.header

    def counted(reader: header._HeadReader) -> header.Header:
        found.append(reader._file.path)
        return whole(reader)

    monkeypatch.setattr(header._HeadReader, "header", counted)
    monkeypatch.setattr(header, "_recent", {})
    return found


def test_a_start_reads_a_header_once(reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "_SETTLED", 0)
    path = Path(shutil.copy(min(GOLDENS.glob("*.gguf"), key=lambda x: x.stat().st_size), tmp_path / "model.gguf"))
    load_module(describe(find_model(str(path))))
    assert reads == [path]


def test_a_changed_file_is_read_again(reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "_SETTLED", 0)
    path = write_good(tmp_path / "good.gguf")
    for _ in range(3):
        assert GGUFFile(path).version == 3
    assert len(reads) == 1
    data = bytearray(path.read_bytes())
    data[4] = 2  # version 2: the same size, in the same inode
    path.write_bytes(data)
    os.utime(path, (1, 1))
    assert GGUFFile(path).version == 2


def test_a_file_that_changed_a_moment_ago_may_change_unseen(reads: list[Path], tmp_path: Path) -> None:
    path = write_good(tmp_path / "good.gguf")
    for _ in range(2):
        GGUFFile(path)
    assert len(reads) == 2


def test_few_headers_are_kept(reads: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(header, "_SETTLED", 0)
    monkeypatch.setattr(header, "_MOST_RECENT", 2)
    paths = [write_good(tmp_path / f"{i}.gguf") for i in range(3)]
    for path in [*paths, paths[2], paths[0]]:
        GGUFFile(path)
    assert reads == [*paths, paths[0]]
    assert len(header._recent) == 2
