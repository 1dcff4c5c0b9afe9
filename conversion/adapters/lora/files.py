"""LoRA folders: `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them.

    lora = open_lora("my-adapter")
    check_fits(lora, num_layers=32, features=part_features(config))
    a, b = lora.read(ModuleKey(0, "q_proj"))

Opening reads and checks the header; factors are read one module at a time. Which modules an adapter changes is what its
file has tensors for. A module that its configuration targets and its file lacks is an error, not a zero: PEFT from 0.20
on drops layers when it saves several adapters whose names are numbers, and such a file would behave like a slightly
different model.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.config import CONFIG_NAME, LoRAConfig, read_lora_config
from conversion.adapters.lora.names import FactorName, is_stray, own_factors, parse_factor, why_refused
from conversion.adapters.modules import PARTS, ModuleKey, parts_of, torch_order
from conversion.adapters.tensor_checks import check_floating, not_finite
from conversion.files.regular_file import is_file, is_folder
from conversion.weights.safetensors_io import SafetensorsFile, read_array
from conversion.weights.tensor_source import Array

__all__ = ["AdapterError", "LoRAFiles", "LoRAModule", "check_fits", "open_lora"]

WEIGHTS_NAME = "adapter_model.safetensors"
MAX_LAYERS = 4096
"""Most layers of a model with adapters; the deepest have about a hundred."""
_PICKLED = ("adapter_model.bin", "adapter_model.pt", "pytorch_model.bin")


@dataclass(frozen=True, kw_only=True)
class LoRAModule:
    """What an adapter adds to one linear layer: `scale * B A x`."""

    rank: int
    scale: float
    """alpha / rank, or alpha / sqrt(rank) with rslora."""
    in_features: int
    out_features: int


@dataclass(frozen=True, kw_only=True)
class LoRAFiles:
    """An adapter on disk."""

    name: str
    folder: Path
    config: LoRAConfig
    modules: Mapping[ModuleKey, LoRAModule]
    """By layer, and in a layer in the order of `PARTS`."""
    _file: SafetensorsFile = field(repr=False)
    _tensors: Mapping[ModuleKey, tuple[str, str]] = field(repr=False)
    """Names of A and B."""
    _prefix: str = field(repr=False)

    @property
    def base_model(self) -> str | None:
        """The base model that its configuration names: a Hub id or a path."""
        return self.config.base_model

    @property
    def weight_file(self) -> Path:
        """Where the factors are."""
        return self._file.path

    @property
    def rank(self) -> int:
        """The largest rank of its modules."""
        return max(module.rank for module in self.modules.values())

    @property
    def parts(self) -> tuple[str, ...]:
        """The kinds of linear layers that it changes somewhere."""
        return parts_of(self.modules)

    @property
    def parameters(self) -> int:
        """Values in all factors."""
        return sum(m.rank * (m.in_features + m.out_features) for m in self.modules.values())

    def read(self, key: ModuleKey) -> tuple[Array, Array]:
        """A [rank, in] and B [out, rank] of a module, in their stored type.

        Raises:
          AdapterError: a value is not finite, or the file was truncated since it was opened.
          KeyError: the adapter does not change this module.
        """
        name_a, name_b = self._tensors[key]
        return self._finite(name_a), self._finite(name_b)

    def types(self, key: ModuleKey) -> tuple[np.dtype, np.dtype]:
        """The stored types of A and B of a module."""
        name_a, name_b = self._tensors[key]
        return self._file.dtype(name_a), self._file.dtype(name_b)

    def check_layers(self, num_layers: int) -> None:
        """Check that every module that the configuration targets in the first `num_layers` layers is there.

        Raises:
          AdapterError: names the first that is missing.
        """
        for layer in range(num_layers):
            for part in PARTS:
                key = ModuleKey(layer, part)
                if key not in self.modules and self.config.targets(self._path(key), layer):
                    raise self._missing(key)

    def close(self) -> None:
        self._file.close()

    def _finite(self, name: str) -> Array:
        array = read_array(self._file, name)
        if (bad := not_finite(array)) is not None:
            raise AdapterError(
                f"{self._file.path}: tensor {name} holds {bad}; the adapter is damaged, or its training diverged"
            )
        return array

    def _path(self, key: ModuleKey) -> str:
        """A module's name in the model that the adapter was made for."""
        return _path(key, self._prefix)

    def _missing(self, key: ModuleKey) -> AdapterError:
        layers = sorted({other.layer for other in self.modules if other.part == key.part})
        there = f"it has {key.part} in {_ranges(layers)} only" if layers else f"it has no {key.part} at all"
        return AdapterError(
            f"{self._file.path} has no weights for {key.path}, which {CONFIG_NAME} targets ({there}). "
            "PEFT from 0.20 on loses layers when it saves several adapters whose names are numbers: "
            "save each adapter by itself. If the layers were left out on purpose, list those that are meant in "
            f"layers_to_transform of {CONFIG_NAME}"
        )


def open_lora(folder: Path | str, *, name: str | None = None) -> LoRAFiles:
    """Open a LoRA folder and check its configuration and the header of its weights.

    Args:
      name: of the adapter; None: the folder's.
    Raises:
      AdapterError: something is missing, broken, contradictory or not implemented; the message says what.
      WeightFileError: the weights are not a complete safetensors file.
    """
    folder = Path(folder)
    weights = _weights_path(folder)
    config = read_lora_config(folder / CONFIG_NAME)
    file = SafetensorsFile(weights)
    try:
        factors = _factors(file)
        prefix = _prefix(file, factors)
        tensors, modules = _pairs(file, factors, config, prefix)
        lora = LoRAFiles(
            name=name or folder.resolve().name,
            folder=folder,
            config=config,
            modules=modules,
            _file=file,
            _tensors=tensors,
            _prefix=prefix,
        )
        lora.check_layers(1 + max(key.layer for key in modules))
    except BaseException:
        file.close()
        raise
    return lora


def check_fits(lora: LoRAFiles, *, num_layers: int, features: Mapping[str, tuple[int, int]]) -> None:
    """Check that an adapter fits a model of this shape.

    Args:
      features: (out, in) of each part.
    Raises:
      AdapterError: names the first module that the model lacks or has in another shape, or that the adapter lacks.
    """
    for key, module in lora.modules.items():
        if key.layer >= num_layers:
            raise AdapterError(
                f"adapter {lora.name} changes {key.path}, and the model has {num_layers} layers: "
                "it was trained for another model"
            )
        out_features, in_features = features[key.part]
        if (module.out_features, module.in_features) != (out_features, in_features):
            raise AdapterError(
                f"adapter {lora.name} has {key.path} with {module.in_features} inputs and {module.out_features} "
                f"outputs; the model's has {in_features} and {out_features}: it was trained for another model"
            )
    lora.check_layers(num_layers)


def _weights_path(folder: Path) -> Path:
    if is_file(folder):
        raise AdapterError(
            f"{folder} is a file; expected the folder of an adapter, with {CONFIG_NAME} and {WEIGHTS_NAME} in it: "
            "without the first, the scale of the weights is unknown"
        )
    if not is_folder(folder):
        raise AdapterError(f"there is no folder {folder}; expected one with {CONFIG_NAME} and {WEIGHTS_NAME} in it")
    path = folder / WEIGHTS_NAME
    if is_file(path):
        return path
    pickled = next((name for name in _PICKLED if is_file(folder / name)), None)
    if pickled is not None:
        raise AdapterError(
            f"{folder} has its weights in {pickled} only; such files can run code when they are opened and are not "
            f"read. Save the adapter as {WEIGHTS_NAME}"
        )
    raise AdapterError(f"{folder} has no {WEIGHTS_NAME}, which holds an adapter's weights")


def _factors(file: SafetensorsFile) -> dict[tuple[ModuleKey, str], tuple[str, FactorName]]:
    """Names of the tensors by module and factor."""
    parsed: dict[str, FactorName] = {}
    for name in file.names():
        if is_stray(name):
            continue
        factor = parse_factor(name)
        if factor is None:
            raise AdapterError(f"{file.path}: tensor {name} {why_refused(name)}; that is not implemented")
        parsed[name] = factor
    found: dict[tuple[ModuleKey, str], tuple[str, FactorName]] = {}
    for name, factor in own_factors(parsed).items():
        if (other := found.get((factor.key, factor.factor))) is not None:
            raise AdapterError(
                f"{file.path}: both {other[0]} and {name} are factor {factor.factor} of {factor.key.path}"
            )
        if factor.key.layer >= MAX_LAYERS:
            raise AdapterError(
                f"{file.path}: tensor {name} is of layer {factor.key.layer}; expected below {MAX_LAYERS:,}"
            )
        found[factor.key, factor.factor] = (name, factor)
    if not found:
        raise AdapterError(f"{file.path} holds no factors of linear layers (names with lora_A and lora_B)")
    return found


def _prefix(file: SafetensorsFile, factors: Mapping[tuple[ModuleKey, str], tuple[str, FactorName]]) -> str:
    """The prefix of all modules before `layers.`."""
    first_name, first = next(iter(factors.values()))
    for name, factor in factors.values():
        if (factor.prefix, factor.adapter) != (first.prefix, first.adapter):
            raise AdapterError(f"{file.path}: {first_name} and {name} belong to different adapters or models")
    return first.prefix


def _pairs(
    file: SafetensorsFile,
    factors: Mapping[tuple[ModuleKey, str], tuple[str, FactorName]],
    config: LoRAConfig,
    prefix: str,
) -> tuple[dict[ModuleKey, tuple[str, str]], dict[ModuleKey, LoRAModule]]:
    tensors: dict[ModuleKey, tuple[str, str]] = {}
    modules: dict[ModuleKey, LoRAModule] = {}
    for key in sorted({key for key, _ in factors}, key=torch_order):
        names: list[str] = []
        for factor, other in (("A", "B"), ("B", "A")):
            if (key, factor) not in factors:
                raise AdapterError(
                    f"{file.path} has lora_{other} of {key.path} without its lora_{factor}: the file is incomplete"
                )
            names.append(factors[key, factor][0])
        tensors[key] = (names[0], names[1])
        path = _path(key, prefix)
        modules[key] = _module(file, names[0], names[1], config, path)
    return tensors, modules


def _module(file: SafetensorsFile, name_a: str, name_b: str, config: LoRAConfig, path: str) -> LoRAModule:
    for name in (name_a, name_b):
        check_floating(file, name)
        if len(file.shape(name)) != 2 or math.prod(file.shape(name)) == 0:
            raise AdapterError(f"{file.path}: tensor {name} has shape {list(file.shape(name))}; expected a matrix")
    (rank, in_features), (out_features, rank_b) = file.shape(name_a), file.shape(name_b)
    if rank != rank_b:
        raise AdapterError(
            f"{file.path}: {name_a} {list(file.shape(name_a))} and {name_b} {list(file.shape(name_b))} have ranks "
            f"{rank} and {rank_b}; expected [r, in] and [out, r]"
        )
    expected = config.rank_of(path)
    if rank != expected:
        raise AdapterError(
            f"{file.path}: {name_a} has rank {rank}, and {CONFIG_NAME} says {expected} (r, rank_pattern): "
            "the two do not belong together"
        )
    scale = config.scale_of(path)
    return LoRAModule(rank=rank, scale=scale, in_features=in_features, out_features=out_features)


def _path(key: ModuleKey, prefix: str) -> str:
    return f"{prefix}{key.path.removeprefix('model.')}"


def _ranges(numbers: Iterable[int]) -> str:
    """Layers as people write them: 0, 2-31."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)
    return f"layer {shown}" if len(runs) == 1 and runs[0][0] == runs[0][1] else f"layers {shown}"
