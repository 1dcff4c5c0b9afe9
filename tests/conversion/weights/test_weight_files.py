"""Which files of a folder are its weights. People keep several formats side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from conversion.weights.tensor_source import WeightFileError
from conversion.weights.weight_files import find_weight_files


def names(folder: Path) -> list[str]:
    return [path.name for path in find_weight_files(folder)]


def touch(folder: Path, *files: str) -> None:
    for name in files:
        (folder / name).touch()


def test_a_single_file(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", "model.safetensors", "adapter_model.safetensors", "pytorch_model.bin")
    assert names(tmp_path) == ["model.safetensors"]


def test_an_index_comes_before_what_else_is_there(tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    touch(tmp_path, "config.json", "model.safetensors", "model-00003-of-00002.safetensors", *shards)
    index = {"weight_map": dict(zip("ab", shards, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert names(tmp_path) == shards


def test_shards_without_an_index(tmp_path: Path) -> None:
    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    touch(tmp_path, "config.json", *reversed(shards))
    assert names(tmp_path) == shards


def test_the_format_whose_configuration_is_read_comes_first(tmp_path: Path) -> None:
    """Repositories of Mistral hold the model twice; one format must not be read with the other's configuration."""
    touch(tmp_path, "params.json", "model.safetensors", "consolidated.safetensors")
    assert names(tmp_path) == ["consolidated.safetensors"]
    touch(tmp_path, "config.json")
    assert names(tmp_path) == ["model.safetensors"]


def test_the_other_format_serves_where_it_is_alone(tmp_path: Path) -> None:
    touch(tmp_path, "config.json", "consolidated.safetensors")
    assert names(tmp_path) == ["consolidated.safetensors"]


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "consolidated.00.pth"])
def test_pickled_weights_are_refused_with_the_reason(tmp_path: Path, pickled: str) -> None:
    touch(tmp_path, "config.json", pickled)
    with pytest.raises(WeightFileError, match="can run code"):
        find_weight_files(tmp_path)


def test_an_empty_folder_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"expected model\.safetensors"):
        find_weight_files(tmp_path)
