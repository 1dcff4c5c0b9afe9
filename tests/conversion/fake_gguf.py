"""A GGUF file that exists in memory only, so that the largest models can be described without their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.gguf.container.file import TensorInfo
from conversion.weights.ggml_types import BY_NAME


def tensor_info(name: str, shape: tuple[int, ...], kind: str = "F32") -> TensorInfo:
    nbytes = math.prod(shape[:-1]) * BY_NAME[kind].row_bytes(shape[-1])
    return TensorInfo(name=name, shape=shape, type_id=BY_NAME[kind].id, nbytes=nbytes, part=0, offset=0)


class FakeGGUF:
    """What `GGUFFile` has, of given metadata and tensors; only `data` has values."""

    def __init__(
        self,
        metadata: Mapping[str, Any],
        tensors: Mapping[str, TensorInfo],
        data: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        self.paths = (Path("fake.gguf"),)
        self.metadata = dict(metadata)
        self.tensors = dict(tensors)
        self.data = dict(data or {})

    def read_raw(self, name: str, out: np.ndarray) -> None:
        out[...] = self.data[name].reshape(-1).view(np.uint8)


def model(
    metadata: Mapping[str, Any],
    *,
    vocab_size: int,
    kind: str = "F16",
    tied: bool = False,
    rope_factors: np.ndarray | None = None,
    extra: Mapping[str, tuple[int, ...]] | None = None,
) -> FakeGGUF:
    """A model of the shape that `metadata` gives it, with those tensors that say something about the configuration."""
    architecture = metadata["general.architecture"]
    hidden_size = metadata[f"{architecture}.embedding_length"]
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocab_size, hidden_size)}
    if not tied:
        shapes["output.weight"] = (vocab_size, hidden_size)
    for layer in range(metadata[f"{architecture}.block_count"]):
        shapes[f"blk.{layer}.attn_norm.weight"] = (hidden_size,)
    shapes |= extra or {}
    tensors = {name: tensor_info(name, shape, kind if len(shape) > 1 else "F32") for name, shape in shapes.items()}
    data: dict[str, np.ndarray] = {}
    if rope_factors is not None:
        data["rope_freqs.weight"] = np.asarray(rope_factors, np.float32)
        tensors["rope_freqs.weight"] = tensor_info("rope_freqs.weight", rope_factors.shape)
    return FakeGGUF(metadata, tensors, data)
