"""Model folders as GGUF files, and GGUF files as GGUF files of another type.

    from conversion.to_gguf import convert_to_gguf
    convert_to_gguf("my-model", "my-model.Q4_K_M.gguf", type="q4_k_m")

One tensor is in memory at a time. The file gets its name once it is complete.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from conversion.files.output_files import check_destination, new_file
from conversion.files.regular_file import is_file
from conversion.gguf.container.writer import GGUFWriter, NewTensor, file_size
from conversion.gguf.writing.new_model import NewGGUFModel, open_folder, open_gguf
from conversion.gguf.writing.type_mix import TypeMix, choose_type, find_mix
from conversion.weights.weight_files import is_gguf

Progress = Callable[[int, int], None]
"""Called with (bytes written so far, bytes in all)."""

_log = logging.getLogger(__name__)
_QUANTIZATION_VERSION = 2
"""Version of ggml's block layouts: the value of `general.quantization_version` since 2023."""


def convert_to_gguf(
    source: Path | str,
    destination: Path | str,
    *,
    type: str = "q8_0",
    name: str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> None:
    """Write a GGUF file of a model.

    Args:
      source: a folder in Hugging Face's or Mistral's own format, or a GGUF file (any part of a split one). Tensors that
        a GGUF file has packed in another type are unpacked and packed again, which loses a little more.
      destination: the file to write.
      type: one of `conversion.gguf.writing.type_mix.MIXES`, in any case.
      name: `general.name`; None: the folder's name, or what a GGUF file has.
      overwrite: replace a file of this name.
    Raises:
      WeightFileError, TokenizerError: the source is missing, broken, or of a kind that has no GGUF form.
      OutputError: the destination exists, or there is no room for it.
      ValueError: `type` is unknown.
    """
    mix = find_mix(type)
    path, target = Path(source), Path(destination)
    check_destination(target, size=0, overwrite=overwrite)  # before anything is read
    from_gguf = is_file(path) and is_gguf(path)
    with open_gguf(path, name=name) if from_gguf else open_folder(path, name=name) as model:
        tensors = _plan(model, mix)
        again = sum(model.requantised(tensor.name, tensor.type) for tensor in tensors)
        if again:
            _log.warning(
                "%d of the tensors in %s are quantised already and will be quantised again, "
                "which loses a little more each time: better convert the original model",
                again,
                path,
            )
        metadata = {
            **model.metadata,
            "general.quantization_version": _QUANTIZATION_VERSION,
            "general.file_type": mix.file_type,
        }
        total, done = sum(tensor.nbytes for tensor in tensors), 0
        with new_file(target, size=file_size(metadata, tensors), overwrite=overwrite) as file:
            writer = GGUFWriter(file, metadata, tensors)
            for tensor in tensors:
                for piece in model.encoded(tensor.name, tensor.type):
                    writer.write(tensor.name, piece)
                    done += piece.nbytes
                    if progress is not None:
                        progress(done, total)
            writer.finish()


def _plan(model: NewGGUFModel, mix: TypeMix) -> list[NewTensor]:
    """What will be written, in order."""
    tied, layers = model.tied, model.layers
    return [
        NewTensor(name=name, shape=shape, type=choose_type(mix, name, shape, layers=layers, tied=tied))
        for name, shape in model.shapes().items()
    ]
