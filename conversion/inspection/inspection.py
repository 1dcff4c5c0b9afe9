"""What is in a model file, a model folder or a folder of adapters, and what a model would need in memory, from headers
alone: no model weights are read and nothing heavy is imported, so that it takes a fraction of a second.

    from conversion.inspection import inspect
    print(inspect("model.Q4_K_M.gguf"))
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from conversion.adapters.description import describe, is_adapter_folder
from conversion.files.json_file import read_json_object
from conversion.files.regular_file import exists, is_folder, shortened
from conversion.gguf.config import hf_config
from conversion.gguf.container.fields import shortest
from conversion.gguf.container.file import GGUFFile
from conversion.inspection.memory_estimate import MemoryEstimate, StoredTensor, estimate_memory
from conversion.inspection.report import Inspection, LongArray, TensorSummary
from conversion.weights.decoder_weights import EMBEDDING, HEAD, spellings
from conversion.weights.ggml_types import BY_NAME, GGMLType
from conversion.weights.safetensors_io import DTYPES, SafetensorsFile
from conversion.weights.tensor_names import HuggingFaceText
from conversion.weights.tensor_source import WeightFileError
from conversion.weights.weight_files import find_weight_files, has_configuration, is_first_part, is_gguf

_SHOWN_ITEMS = 8
"""Longer arrays are shortened."""
_OUTPUTS, _EMBEDDINGS = spellings(HEAD), spellings(EMBEDDING)
_NOT_WEIGHTS = frozenset({"rope_freqs.weight"})
"""Tensors that are part of the configuration."""


def find_models(path: Path | str) -> list[Path]:
    """What `inspect` can describe at a path: the path itself, or each GGUF model of a folder that contains several, or
    no model in another format.

    Raises:
      WeightFileError: the path does not exist.
    """
    path = Path(path)
    if not exists(path):
        raise WeightFileError(f"there is no file or folder {path}")
    if not is_folder(path):
        return [path]
    ggufs = [entry for entry in sorted(path.glob("*.gguf")) if is_first_part(entry.name)]
    if ggufs and not has_configuration(path):
        return ggufs
    return [path]


def inspect(path: Path | str) -> Inspection:
    """Inspect a GGUF file (all parts of a split one), a safetensors file, or a folder of a model, a LoRA or an X-LoRA
    model.

    Raises:
      WeightFileError: a file is missing or broken, or is neither; or a folder holds several GGUF models, which
        `find_models` lists.
    """
    path = Path(path)
    models = find_models(path)
    if len(models) > 1:
        names = ", ".join(model.name for model in models[:5])
        raise WeightFileError(f"{path} holds {len(models)} GGUF models; choose one of them: {names}")
    found = models[0]
    if is_folder(found):
        return _inspect_folder(found)
    if found.suffix == ".safetensors":
        return _inspect_safetensors(found, "safetensors file", [found], None)
    if is_gguf(found):
        return _inspect_gguf(found)
    raise WeightFileError(f"{found} is neither a GGUF file, a safetensors file nor a model folder")


def _inspect_gguf(path: Path) -> Inspection:
    with GGUFFile(path) as gguf:
        tensors = tuple(
            TensorSummary(
                name=info.name,
                shape=info.shape,
                type=info.type_name,
                nbytes=info.nbytes,
                file=gguf.paths[info.part].name,
            )
            for info in gguf.tensors.values()
        )
        config, problem = None, None
        try:
            config = hf_config(gguf)
        except WeightFileError as error:
            problem = str(error)
        return Inspection(
            path=str(path),
            format=f"GGUF version {gguf.version}",
            files={part.name: part.stat().st_size for part in gguf.paths},
            metadata={key: _shortened(gguf, key) for key in gguf.metadata},
            tensors=tensors,
            memory=_estimate([(t.name, t.shape, BY_NAME.get(t.type)) for t in tensors], config),
            problem=problem,
        )


def _shortened(gguf: GGUFFile, key: str) -> Any:
    if gguf.metadata.count(key) > _SHOWN_ITEMS:
        kind = gguf.metadata.describe(key)
        strings = kind.startswith("string")
        return LongArray(type=kind, first=() if strings else tuple(gguf.metadata[key][:_SHOWN_ITEMS].tolist()))
    value = gguf.metadata[key]
    if isinstance(value, float):
        return shortest(value)
    return value.tolist() if isinstance(value, np.ndarray) else value


def _inspect_folder(folder: Path) -> Inspection:
    if is_adapter_folder(folder):
        return _inspect_adapters(folder)
    name = next((name for name in ("config.json", "params.json") if exists(folder / name)), None)
    if name is None:
        return _inspect_safetensors(folder, "folder of safetensors files", find_weight_files(folder), None)
    config = read_json_object(folder / name, error=WeightFileError)
    own_format = name == "params.json"
    title = "folder in Mistral's own format" if own_format else "Hugging Face folder"
    return _inspect_safetensors(folder, title, find_weight_files(folder), config)


def _inspect_adapters(folder: Path) -> Inspection:
    description = describe(folder)
    found = _inspect_safetensors(folder, description.format, list(description.weight_files), None)
    return replace(
        found,
        metadata={**description.facts, **found.metadata},
        memory=MemoryEstimate(weights={}, cache_per_token=None),  # of the base model, which is not known here
        problem=description.problem or found.problem,
    )


_PARAMS_NAMES = {
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "num_key_value_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "hidden_size": "dim",
}
"""Names in params.json of the keys of config.json that an estimate needs."""


def _inspect_safetensors(path: Path, title: str, paths: list[Path], config: dict[str, Any] | None) -> Inspection:
    metadata: dict[str, Any] = dict(_flat(config or {}))
    tensors: list[TensorSummary] = []
    shapes: dict[str, tuple[int, ...]] = {}
    for file_path in paths:
        file, file_name = SafetensorsFile(file_path), _shown_name(file_path, path)
        metadata.update({f"{file_name}: {key}": value for key, value in file.metadata.items()})
        tensors += [_safetensors_summary(file, name, file_name) for name in file.names()]
        text = HuggingFaceText(file)
        shapes |= {name: text.shape(name) for name in text.names()}
        file.close()
    if config is not None and "n_layers" in config:
        config = {ours: config.get(theirs) for ours, theirs in _PARAMS_NAMES.items()}
    unknown = sorted({tensor.type for tensor in tensors if tensor.type not in DTYPES})
    return Inspection(
        path=str(path),
        format=title,
        files={_shown_name(file_path, path): file_path.stat().st_size for file_path in paths},
        metadata=metadata,
        tensors=tuple(tensors),
        memory=_estimate([(name, shape, None) for name, shape in shapes.items()], config),
        problem=f"tensors of type {', '.join(unknown)} are not implemented" if unknown else None,
    )


def _shown_name(file: Path, path: Path) -> str:
    """A file's name, with the folders between it and what is inspected."""
    return file.relative_to(path).as_posix() if file != path and file.is_relative_to(path) else file.name


def _safetensors_summary(file: SafetensorsFile, name: str, file_name: str) -> TensorSummary:
    shape = file.shape(name)
    try:
        dtype = file.dtype(name)
        kind = next(kind for kind, known in DTYPES.items() if known == dtype)
    except WeightFileError:
        kind = shortened(file.stored_type(name), 40)
    return TensorSummary(name=name, shape=shape, type=kind, nbytes=file.nbytes(name), file=file_name)


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """The entries of nested objects under joined names, such as rope_scaling.factor."""
    for key, value in config.items():
        if isinstance(value, dict):
            yield from _flat(cast("dict[str, Any]", value), f"{prefix}{key}.")
        elif isinstance(value, list) and len(cast("list[Any]", value)) > _SHOWN_ITEMS:
            items = cast("list[Any]", value)
            yield prefix + key, LongArray(type=f"list[{len(items)}]", first=tuple(items[:_SHOWN_ITEMS]))
        else:
            yield prefix + key, value


def _estimate(
    tensors: Iterable[tuple[str, tuple[int, ...], GGMLType | None]], config: Mapping[str, Any] | None
) -> MemoryEstimate:
    """Memory that the model's own tensors need, by name, shape and type."""
    present = [tensor for tensor in tensors if tensor[0] not in _NOT_WEIGHTS]
    outputs = _OUTPUTS if any(name in _OUTPUTS for name, _, _ in present) else _EMBEDDINGS
    stored = [StoredTensor(shape=shape, kind=kind, is_output=name in outputs) for name, shape, kind in present]
    return estimate_memory(stored, config)
