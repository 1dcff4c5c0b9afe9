"""Checkpoints of a run: one safetensors file with parameters and optimizer state, and the run's identity as JSON in its
header.

One file, since one file is replaced atomically: a run that is killed while it writes leaves the last checkpoint intact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save

from conversion.files.output_files import new_file
from conversion.weights.safetensors_io import SafetensorsFile, read_array
from conversion.weights.tensor_source import WeightFileError

CHECKPOINT_NAME = "checkpoint.safetensors"


class CheckpointError(ValueError):
    """A checkpoint is missing, broken, or of another run."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The state of a run."""

    params: Any
    optimizer: Any
    step: int
    """Updates done."""


def save_checkpoint(path: Path, checkpoint: Checkpoint, *, identity: dict[str, Any]) -> None:
    """Replace the file.

    Args:
      identity: values that must be the same when the run is resumed, as JSON.
    """
    arrays = {name: np.asarray(leaf) for name, leaf in _named(checkpoint).items()}
    about = json.dumps({"step": checkpoint.step, "run": identity})
    content = save(arrays, metadata={"training": about})
    with new_file(path, size=len(content), overwrite=True) as file:
        file.write(content)


def load_checkpoint(path: Path, like: Checkpoint, *, identity: dict[str, Any]) -> Checkpoint:
    """Read a checkpoint into the structure of `like`.

    Raises:
      CheckpointError: there is none, it is broken, or it is of a run with another identity; the message names the first
        difference.
    """
    if not path.is_file():
        raise CheckpointError(f"there is no checkpoint {path} to resume from; start the run without --resume")
    try:
        file = SafetensorsFile(path)
        about: dict[str, Any] = json.loads(file.metadata["training"])
        step, run = int(about["step"]), dict(about["run"])
    except (WeightFileError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} is no checkpoint of a training run: {error}") from error
    expected: dict[str, Any] = json.loads(json.dumps(identity))
    for name in [*expected, *run]:
        if run.get(name) != expected.get(name):
            raise CheckpointError(
                f"{path} is of a run with {name} = {run.get(name)!r}, and this one has {expected.get(name)!r}; "
                "resume it with what it was started with, or start a new run in another folder"
            )
    leaves: list[jax.Array] = []
    present = set(file.names())
    for name, leaf in _named(like).items():
        if name not in present or file.shape(name) != leaf.shape or file.dtype(name) != leaf.dtype:
            raise CheckpointError(
                f"{path} does not hold {name} as this run needs it; start a new run in another folder"
            )
        leaves.append(jax.device_put(read_array(file, name), leaf.sharding))
    file.close()
    params, optimizer = jax.tree.unflatten(jax.tree.structure((like.params, like.optimizer)), leaves)
    return Checkpoint(params=params, optimizer=optimizer, step=step)


def _named(checkpoint: Checkpoint) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path((checkpoint.params, checkpoint.optimizer))
    return {("optimizer" if path[0].idx else "params") + jax.tree_util.keystr(path[1:]): leaf for path, leaf in leaves}  # pyright: ignore[reportAttributeAccessIssue]
