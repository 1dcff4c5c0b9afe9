"""The folder of a run: its log and checkpoint during the run, and at the end the trained adapter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from conversion.adapters.lora.config import CONFIG_NAME
from conversion.adapters.lora.files import WEIGHTS_NAME
from conversion.adapters.xlora.layout import CLASSIFIER_NAME, XLORA_CONFIG_NAME
from conversion.adapters.xlora.ordering import ORDERING_NAME
from conversion.files.output_files import OutputError
from mistral_jax.training.checkpoints import CHECKPOINT_NAME

LOG_NAME = "training_log.jsonl"
_NEW = ".trained"


def prepare(output: Path | str | None, *, resume: bool, overwrite: bool) -> Path | None:
    """Make the folder.

    Args:
      output: the folder; None: no folder.
    Returns: the folder, with ~ replaced.
    Raises:
      OutputError: it is not empty, and the run neither resumes nor overwrites; or it cannot be created.
    """
    if output is None:
        return None
    folder = Path(output).expanduser()
    folder.parent.mkdir(parents=True, exist_ok=True)
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; expected the name of a folder to write")
    if folder.is_dir() and not resume:
        if (folder / CHECKPOINT_NAME).is_file() and not overwrite:
            raise OutputError(
                f"{folder} holds a run that was not finished; go on with it (--resume), or start over (--overwrite)"
            )
        if any(folder.iterdir()) and not overwrite:
            raise OutputError(f"{folder} is not empty; choose another name, or overwrite it (--overwrite)")
    folder.mkdir(exist_ok=True)
    if not resume:
        (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
    return folder


def finish(folder: Path, write: Callable[[Path], None]) -> None:
    """Move the trained adapter into the folder, and remove the checkpoint, which is no longer needed.

    Args:
      write: creates a folder of the given name with the files for this one.
    """
    new = folder / _NEW
    if new.exists():
        shutil.rmtree(new)
    write(new)
    # Files of an earlier run of another kind would describe what the folder no longer contains.
    for name in (CONFIG_NAME, WEIGHTS_NAME, XLORA_CONFIG_NAME, CLASSIFIER_NAME, ORDERING_NAME):
        (folder / name).unlink(missing_ok=True)
    for entry in sorted(new.iterdir()):
        place = folder / entry.name
        if place.is_dir():
            shutil.rmtree(place)
        entry.replace(place)
    new.rmdir()
    (folder / CHECKPOINT_NAME).unlink(missing_ok=True)
