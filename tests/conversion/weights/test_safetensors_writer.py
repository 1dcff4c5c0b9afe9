"""Shards are planned to a limit, and the library reads what is written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from conversion.weights.safetensors_writer import plan_shards, write_shards

FLOAT16 = np.dtype(np.float16)


def test_a_shard_ends_before_it_is_too_large() -> None:
    shapes = {"a": (10,), "b": (20, 2), "c": (5,), "d": (5,), "e": (100,)}
    shards = plan_shards(shapes, FLOAT16, limit=100)
    assert [list(shard.shapes) for shard in shards] == [["a", "b"], ["c", "d"], ["e"]]
    assert [shard.name for shard in shards] == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    assert [shard.name for shard in plan_shards(shapes, FLOAT16)] == ["model.safetensors"]


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = {"x": np.arange(6, dtype=np.float16).reshape(2, 3), "y": np.ones((), np.float16)}
    shards = plan_shards({name: array.shape for name, array in tensors.items()}, FLOAT16)
    write_shards(tmp_path, shards, FLOAT16, tensors.__getitem__)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_tensor_that_is_not_as_announced_is_refused(tmp_path: Path) -> None:
    shards = plan_shards({"x": (3,)}, FLOAT16)
    with pytest.raises(ValueError, match="announced as float16"):
        write_shards(tmp_path, shards, FLOAT16, lambda name: np.zeros(3, np.float32))
