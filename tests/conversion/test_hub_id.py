"""What is taken for a repository of the Hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from conversion.hub_id import is_hub_id


@pytest.mark.parametrize("name", ["lab/model", "HuggingFaceH4/zephyr-7b-beta", "0x/a_b.c-d"])
def test_names_of_repositories(name: str) -> None:
    assert is_hub_id(name)


@pytest.mark.parametrize(
    "name", ["model", "./lab/model", "/lab/model", "~/model", "lab/model/file", "lab /model", "lab/größe", ""]
)
def test_other_names(name: str) -> None:
    assert not is_hub_id(name)


def test_what_is_here_is_no_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lab" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not is_hub_id("lab/model")
    assert is_hub_id("lab/other")
