"""Which files hold a model's weights."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from conversion.files.json_file import read_json_object
from conversion.files.regular_file import exists, is_file, open_regular, reason_of
from conversion.weights.safetensors_io import index_files
from conversion.weights.tensor_source import WeightFileError

_GGUF_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def find_weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a model folder: those of its index, or `model.safetensors`, or Mistral's `consolidated`.

    Raises:
      WeightFileError: there are none, or shards are missing.
    """
    if not is_file(folder / "config.json") and is_file(folder / "params.json"):
        order = ("consolidated", "model")
    else:
        order = ("model", "consolidated")
    for stem in order:
        index = folder / f"{stem}.safetensors.index.json"
        if is_file(index):
            return index_files(index)
        if is_file(single := folder / f"{stem}.safetensors"):
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


def has_configuration(folder: Path) -> bool:
    """Whether a folder has the configuration of a model in a format other than GGUF.

    Repositories of GGUF files may have a config.json so that the Hub counts downloads; it contains only the model's
    type.
    """
    if exists(folder / "params.json"):
        return True
    try:
        config = read_json_object(folder / "config.json", error=WeightFileError, missing_ok=True)
    except WeightFileError:
        return True  # the error is reported when it is used
    return not {"architectures", "hidden_size", "text_config"}.isdisjoint(config)


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its name or else by its first bytes.

    Raises:
      WeightFileError: it cannot be read.
    """
    if path.suffix == ".gguf":
        return True
    try:
        fd = open_regular(path)
        try:
            return os.read(fd, 4) == b"GGUF"
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:
        raise WeightFileError(f"{path} cannot be read: {reason_of(error)}") from error


def is_first_part(name: str) -> bool:
    """Whether a GGUF file of this name is a complete one, or the first of several parts."""
    match = _GGUF_PART.fullmatch(name)
    return match is None or int(match["number"]) == 1


def parts_pattern(name: str) -> str:
    """A glob pattern for a GGUF file and all its parts."""
    match = _GGUF_PART.fullmatch(name)
    return glob.escape(name) if match is None else f"{glob.escape(match['stem'])}-*-of-{match['count']}.gguf"
