"""GGUF files as model folders in Hugging Face's format: weights, configuration, tokenizer and chat templates.

    from conversion.to_safetensors import convert_to_safetensors
    convert_to_safetensors("my-model.Q4_K_M.gguf", "my-model")

One tensor is in memory at a time. The folder gets its name once it is complete.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from conversion.files.output_files import check_destination, new_folder
from conversion.gguf.config import hf_config
from conversion.gguf.container.fields import shortest
from conversion.gguf.container.file import GGUFFile
from conversion.gguf.source import GGUFSource
from conversion.gguf.tokenizer import tokenizer_files
from conversion.gguf.vocabulary import read_vocabulary
from conversion.weights.safetensors_writer import SHARD_BYTES, plan_shards, write_shards
from conversion.weights.tensor_source import Array, WeightFileError

Progress = Callable[[int, int], None]
"""Called with (bytes written so far, bytes in all)."""

DTYPES: Mapping[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}
"""Types in which weights can be stored, by their GGUF names."""

_OURS = re.compile(
    r"config\.json|generation_config\.json|tokenizer\.(?:json|model)|tokenizer_config\.json|special_tokens_map\.json"
    r"|chat_template\.jinja|model(?:-\d{5}-of-\d{5})?\.safetensors|model\.safetensors\.index\.json"
)
"""Names of the files of such a folder."""
_SAMPLING = {
    **{"temp": "temperature", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"},
    "penalty_repeat": "repetition_penalty",
}
"""Names under `general.sampling.`, and those in generation_config.json."""


def convert_to_safetensors(
    source: Path | str,
    destination: Path | str,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
) -> None:
    """Write a model folder for a GGUF file.

    Args:
      source: a GGUF file, any part of a split one.
      destination: the folder to write; its parent exists.
      dtype: f32, f16 or bf16; None: as most weights are stored, bf16 for packed ones.
      overwrite: replace a folder of this name, if it contains only the files of a model.
      shard_bytes: most bytes of a weight file.
    Raises:
      WeightFileError, TokenizerError: the source is missing or broken, or its model or tokenizer is not implemented.
      OutputError: the destination exists, or there is no room for it.
      ValueError: `dtype` is unknown.
    """
    target = Path(destination)
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(
            f"weights of safetensors files cannot be stored as {dtype!r}; expected one of {', '.join(DTYPES)}"
        )
    check_destination(target, size=0, overwrite=overwrite)  # before anything is read
    with GGUFFile(source) as gguf:
        config = hf_config(gguf)
        files = tokenizer_files(gguf.metadata)
        source_tensors = GGUFSource(gguf)
        stored = _stored_as(config["torch_dtype"]) if dtype is None else DTYPES[dtype]
        shapes = {name: source_tensors.shape(name) for name in sorted(source_tensors.names())}
        files |= {
            "config.json": _dump(config | {"torch_dtype": str(stored)}),
            "generation_config.json": _dump(_generation_config(gguf, config)),
        }
        total = sum(math.prod(shape) for shape in shapes.values()) * stored.itemsize
        done = 0

        def read(name: str) -> Array:
            nonlocal done
            out = np.empty(shapes[name], stored)
            with np.errstate(over="ignore"):
                source_tensors.read_into(name, out)
            if stored == np.float16 and not np.isfinite(out).all():
                raise WeightFileError(
                    f"{name} has values beyond 65504, which float16 cannot hold; convert to bf16 or f32 instead"
                )
            done += out.nbytes
            if progress is not None:
                progress(done, total)
            return out

        size = total + sum(map(len, files.values()))
        with new_folder(target, size=size, overwrite=overwrite, replaceable=_is_ours) as folder:
            for name, content in files.items():
                (folder / name).write_bytes(content)
            write_shards(folder, plan_shards(shapes, stored, limit=shard_bytes), stored, read)


def _is_ours(name: str) -> bool:
    return _OURS.fullmatch(name) is not None


def _stored_as(name: str) -> np.dtype[Any]:
    """The type of safetensors for a type of a configuration."""
    return {"float32": DTYPES["f32"], "float64": DTYPES["f32"], "float16": DTYPES["f16"]}.get(name, DTYPES["bf16"])


def _generation_config(gguf: GGUFFile, config: Mapping[str, Any]) -> dict[str, Any]:
    """Tokens that begin and end generation, and the sampling defaults of the model's makers."""
    ids = read_vocabulary(gguf.metadata).ids
    ends = list(dict.fromkeys(ids[name] for name in ("eos_token", "eot_token", "eom_token") if name in ids))
    generation: dict[str, Any] = {"bos_token_id": config["bos_token_id"]}
    generation["eos_token_id"] = config["eos_token_id"] if not ends else ends[0] if len(ends) == 1 else ends
    sampling = {
        theirs: shortest(value) if isinstance(value, float) else value
        for key, theirs in _SAMPLING.items()
        if (value := gguf.metadata.get(f"general.sampling.{key}")) is not None
    }
    return generation | ({"do_sample": True} if sampling else {}) | sampling


def _dump(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
