"""Safetensors files written tensor by tensor, in several shards where a model is large.

`safetensors.save_file` wants all tensors in memory at once. Format: https://huggingface.co/docs/safetensors.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversion.weights.safetensors_io import DTYPES
from conversion.weights.tensor_source import Array

SHARD_BYTES = 5 * 10**9
"""Most bytes of a shard; transformers' default."""

Read = Callable[[str], Array]
"""Returns the tensor of a name, with the announced type and shape."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of a model."""

    name: str
    shapes: Mapping[str, tuple[int, ...]]


def plan_shards(
    shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype[Any], *, limit: int = SHARD_BYTES
) -> list[Shard]:
    """Tensors of one type in files of at most `limit` bytes (more for a single tensor that is larger), in their
    order."""
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    room = limit
    for name, shape in shapes.items():
        size = math.prod(shape) * dtype.itemsize
        if size > room and groups[-1]:
            groups.append({})
            room = limit
        groups[-1][name] = shape
        room -= size
    if len(groups) == 1:
        return [Shard(name="model.safetensors", shapes=groups[0])]
    count = len(groups)
    return [Shard(name=f"model-{i:05}-of-{count:05}.safetensors", shapes=group) for i, group in enumerate(groups, 1)]


def write_shards(folder: Path, shards: Sequence[Shard], dtype: np.dtype[Any], read: Read) -> None:
    """Write all shards, and an index if there are several.

    Memory: one tensor. Not atomic: the caller writes into a folder that is
    (`conversion.files.output_files.new_folder`).
    """
    for shard in shards:
        with (folder / shard.name).open("wb") as file:
            file.write(_header(shard, dtype))
            for name, shape in shard.shapes.items():
                array = read(name)
                if array.shape != shape or array.dtype != dtype:
                    raise ValueError(f"{name} is {array.dtype} {array.shape} and was announced as {dtype} {shape}")
                file.write(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
    if len(shards) > 1:
        total = sum(math.prod(shape) for shard in shards for shape in shard.shapes.values()) * dtype.itemsize
        weight_map = {name: shard.name for shard in shards for name in shard.shapes}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _header(shard: Shard, dtype: np.dtype[Any]) -> bytes:
    kind = next(kind for kind, known in DTYPES.items() if known == dtype)
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shard.shapes.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        entries[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
