"""Which files of a model folder hold its weights."""

from __future__ import annotations

from pathlib import Path

from conversion.safetensors_io import index_files
from conversion.tensor_source import WeightFileError


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those of its index, or `model.safetensors`, or Mistral's `consolidated`.

    Raises:
      WeightFileError: there are none, or shards are missing.
    """
    if not (folder / "config.json").is_file() and (folder / "params.json").is_file():
        order = ("consolidated", "model")
    else:
        order = ("model", "consolidated")
    for stem in order:
        index = folder / f"{stem}.safetensors.index.json"
        if index.is_file():
            return index_files(index)
        if (single := folder / f"{stem}.safetensors").is_file():
            return [single]
        if shards := sorted(folder.glob(f"{stem}*.safetensors")):
            return shards
    pickled = [path.name for path in folder.glob("*.bin")] + [path.name for path in folder.glob("*.pt*")]
    if pickled:
        raise WeightFileError(
            f"{folder} has only pickled weights ({pickled[0]}), which can run code when opened and are not read. "
            "Convert them to safetensors first."
        )
    raise WeightFileError(
        f"{folder} has no weights: expected model.safetensors, an index with its shards, or consolidated.safetensors"
    )
