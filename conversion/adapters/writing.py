"""LoRA adapters and X-LoRA models written as files that this library, PEFT and the original X-LoRA library read.

    write_lora("poet", NewLoRA(factors=factors, rank=8, alpha=16), base_model="mistralai/Mistral-7B-v0.1")
    write_xlora("mixture", config=config, classifier=layers, adapters={"poet": Path("poet"), "clerk": Path("clerk")},
    base_model=…)

Folders appear complete or not at all (`conversion.files.output_files`). Values that could not be read back are refused
before anything is written.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conversion.adapters.errors import AdapterError
from conversion.adapters.json_object import is_finite, json_file
from conversion.adapters.lora.config import CONFIG_NAME
from conversion.adapters.lora.files import WEIGHTS_NAME, LoRAModule, open_lora
from conversion.adapters.modules import ModuleKey, parts_of, torch_order
from conversion.adapters.tensor_checks import not_finite
from conversion.adapters.xlora.classifier import Linear
from conversion.adapters.xlora.config import XLoRAConfig
from conversion.adapters.xlora.layout import CLASSIFIER_NAME, XLORA_CONFIG_NAME
from conversion.files.output_files import new_folder
from conversion.weights.safetensors_io import write_safetensors
from conversion.weights.tensor_source import Array

Factors = Mapping[ModuleKey, tuple[Array, Array]]
"""A [rank, in] and B [out, rank] of each module that an adapter changes."""

_LORA_FILES = frozenset({CONFIG_NAME, WEIGHTS_NAME})
_XLORA_FILES = frozenset({XLORA_CONFIG_NAME, CLASSIFIER_NAME})


@dataclass(frozen=True, kw_only=True)
class NewLoRA:
    """An adapter in memory. Its product of factors is scaled by alpha / rank, or alpha / sqrt(rank) with rslora."""

    factors: Factors
    rank: int
    alpha: float
    use_rslora: bool = False
    dropout: float = 0.0
    """Dropout that it was trained with."""
    num_layers: int | None = None
    """Layers of the base model. If given, the configuration lists the adapted layers where the last ones are left
    out."""


@dataclass(frozen=True, kw_only=True)
class ChangedLoRA:
    """An adapter on disk whose factors have changed. Its configuration, which says the ranks and scales, stays as it
    is."""

    folder: Path
    factors: Factors
    """Of the same modules, with the same shapes."""


Adapter = Path | NewLoRA | ChangedLoRA
"""An expert of a mixture: a folder, which is copied, or one of the other two."""


def write_lora(folder: Path | str, lora: NewLoRA, *, base_model: str, overwrite: bool = False) -> None:
    """Write a LoRA adapter in PEFT's format.

    Args:
      folder: its parent exists.
      base_model: Hub id or path of the model that the adapter was trained for.
      overwrite: replace a folder of this name, if it contains only an adapter's two files.
    Raises:
      AdapterError: factors of another rank, or not finite; or there are none.
      OutputError: the folder exists, or there is no room for it.
    """
    _check_lora(lora, Path(folder).name)
    with new_folder(
        Path(folder), size=_bytes(lora.factors), overwrite=overwrite, replaceable=_LORA_FILES.__contains__
    ) as new:
        _put_lora(new, lora, base_model)


def write_xlora(
    folder: Path | str,
    *,
    config: XLoRAConfig,
    classifier: Sequence[Linear],
    adapters: Mapping[str, Adapter],
    base_model: str,
    overwrite: bool = False,
) -> None:
    """Write an X-LoRA model in the layout of the original library: a configuration, a classifier, a folder for each
    adapter.

    Args:
      folder: its parent exists.
      config: its `base_model_id` and `adapters` do not matter; the other arguments give them.
      classifier: weight [out, in] and bias [out] (None without `use_bias`), first layer to last.
      adapters: by names, in the order of the classifier's columns.
      overwrite: replace a folder of this name, if it contains only an X-LoRA model.
    Raises:
      AdapterError: a part is broken or does not fit the others.
      OutputError: the folder exists, or there is no room for it.
    """
    _check_mixture(config, classifier, adapters)
    step = 3 if config.enable_relu_and_dropout else 1
    names = [*(f"inner.{step * number}" for number in range(len(classifier) - 1)), "last"]
    with _xlora_folder(Path(folder), classifier, adapters, overwrite, _XLORA_FILES) as new:
        write_safetensors(new / CLASSIFIER_NAME, _classifier_tensors(classifier, names))
        values = _shared_fields(config) | {
            "base_model_id": base_model,
            "adapters": list(adapters),
            "enable_relu_and_dropout": config.enable_relu_and_dropout,
            "use_bias": config.use_bias,
        }
        (new / XLORA_CONFIG_NAME).write_bytes(json_file(values))
        for name, adapter in adapters.items():
            _put_adapter(new / name, adapter, base_model)


def write_peft_xlora(
    folder: Path | str,
    *,
    config: XLoRAConfig,
    classifier: Sequence[Linear],
    adapters: Mapping[str, Adapter],
    base_model: str,
    overwrite: bool = False,
) -> None:
    """Write an X-LoRA model in the layout of PEFT.

    Adapters are called "0", "1" and so on there. PEFT loads them from absolute paths in the configuration, which name
    the new folder: edit them if it moves. (This library finds them in any place.)

    Args:
      config, classifier, adapters, overwrite: as for `write_xlora`. PEFT's classifiers always have biases, and ReLU
        between their layers: without `use_bias` the biases are zero, and a deeper classifier without ReLU is refused.
    Raises:
      AdapterError, OutputError: as `write_xlora`.
    """
    _check_mixture(config, classifier, adapters)
    if config.xlora_depth > 1 and not config.enable_relu_and_dropout:
        raise AdapterError(
            "PEFT puts ReLU between the layers of a classifier, which this one does not have (enable_relu_and_dropout "
            "is false); write it in the original layout"
        )
    path = Path(folder)
    step = 3 if config.xlora_dropout_p > 0 else 2
    names = [f"base_model.internal_xlora_classifier.layers.{step * number}" for number in range(len(classifier))]
    biased = [(weight, np.zeros(len(weight), weight.dtype) if bias is None else bias) for weight, bias in classifier]
    with _xlora_folder(path, biased, adapters, overwrite, _LORA_FILES) as new:
        write_safetensors(new / WEIGHTS_NAME, _classifier_tensors(biased, names))
        values = _shared_fields(config) | {
            "peft_type": "XLORA",
            "task_type": "CAUSAL_LM",
            "inference_mode": True,
            "base_model_name_or_path": base_model,
            "adapters": {str(number): str(path.absolute() / str(number)) for number in range(len(adapters))},
        }
        (new / CONFIG_NAME).write_bytes(json_file(values))
        for number, adapter in enumerate(adapters.values()):
            _put_adapter(new / str(number), adapter, base_model)


@contextmanager
def _xlora_folder(
    path: Path,
    classifier: Sequence[Linear],
    adapters: Mapping[str, Adapter],
    overwrite: bool,
    files: frozenset[str],
) -> Generator[Path]:
    size = sum(weight.nbytes + (0 if bias is None else bias.nbytes) for weight, bias in classifier)
    size += sum(map(_adapter_bytes, adapters.values()))
    with new_folder(
        path,
        size=size,
        overwrite=overwrite,
        replaceable=files.__contains__,
        replaceable_below=_LORA_FILES.__contains__,
    ) as new:
        yield new


def _check_lora(lora: NewLoRA, name: str) -> None:
    if not lora.factors:
        raise AdapterError(f"adapter {name} changes no module")
    if not is_finite(lora.alpha):
        raise AdapterError(f"adapter {name} has alpha {lora.alpha}; expected a finite number")
    for key, (a, b) in lora.factors.items():
        if a.ndim != 2 or b.ndim != 2 or len(a) != lora.rank or b.shape[1] != lora.rank or lora.rank < 1:
            raise AdapterError(
                f"adapter {name}: the factors of {key.path} have shapes {list(a.shape)} and {list(b.shape)}; expected "
                f"[{lora.rank}, in] and [out, {lora.rank}]"
            )
        _check_finite(f"adapter {name}: a factor of {key.path}", a, b)


def _check_changed(changed: ChangedLoRA, modules: Mapping[ModuleKey, LoRAModule], name: str) -> None:
    if changed.factors.keys() != modules.keys():
        raise AdapterError(f"adapter {name}: the factors are not those of the modules that {changed.folder} changes")
    for key, (a, b) in changed.factors.items():
        module = modules[key]
        if a.shape != (module.rank, module.in_features) or b.shape != (module.out_features, module.rank):
            raise AdapterError(
                f"adapter {name}: the factors of {key.path} have shapes {list(a.shape)} and {list(b.shape)}; "
                f"expected those of {changed.folder}, [{module.rank}, {module.in_features}] and "
                f"[{module.out_features}, {module.rank}]"
            )
        _check_finite(f"adapter {name}: a factor of {key.path}", a, b)


def _check_mixture(config: XLoRAConfig, classifier: Sequence[Linear], adapters: Mapping[str, Adapter]) -> None:
    """Check that the result could be read back."""
    if not adapters:
        raise AdapterError("an X-LoRA model needs adapters, and none were given")
    modules: set[ModuleKey] = set()
    for name, adapter in adapters.items():
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            raise AdapterError(f"{name!r} is no name for an adapter: it has to be one for a folder")
        if isinstance(adapter, NewLoRA):
            _check_lora(adapter, name)
            modules |= adapter.factors.keys()
            continue
        lora = open_lora(adapter if isinstance(adapter, Path) else adapter.folder)
        lora.close()
        modules |= lora.modules.keys()
        if isinstance(adapter, ChangedLoRA):
            _check_changed(adapter, lora.modules, name)
    columns = len(modules) if config.layerwise_scalings else 1
    widths = config.widths(columns * len(adapters))
    expected = [[out, into] for into, out in itertools.pairwise(widths)]
    found = [list(weight.shape) for weight, _ in classifier]
    if found != expected:
        raise AdapterError(
            f"the classifier's layers have shapes {found}; expected {expected} (hidden_size {config.hidden_size}, "
            f"xlora_depth {config.xlora_depth}, {columns} sets of scalings x {len(adapters)} adapters)"
        )
    for number, (weight, bias) in enumerate(classifier):
        if (bias is None) == config.use_bias or (bias is not None and bias.shape != weight.shape[:1]):
            wanted = f"a bias of {len(weight)} values" if config.use_bias else "none (use_bias is false)"
            found_bias = "none" if bias is None else f"one of shape {list(bias.shape)}"
            raise AdapterError(f"layer {number} of the classifier should have {wanted}, and has {found_bias}")
        _check_finite(f"layer {number} of the classifier", weight, *(() if bias is None else (bias,)))


def _check_finite(what: str, *arrays: Array) -> None:
    if any(not_finite(array) for array in arrays):
        raise AdapterError(f"{what} has values that are not finite: its training diverged")


def _put_adapter(folder: Path, adapter: Adapter, base_model: str) -> None:
    folder.mkdir()
    match adapter:
        case NewLoRA():
            _put_lora(folder, adapter, base_model)
        case ChangedLoRA():
            shutil.copyfile(adapter.folder / CONFIG_NAME, folder / CONFIG_NAME)
            _put_factors(folder, adapter.factors)
        case Path():
            for name in sorted(_LORA_FILES):
                shutil.copyfile(adapter / name, folder / name)


def _put_lora(folder: Path, lora: NewLoRA, base_model: str) -> None:
    _put_factors(folder, lora.factors)
    targets, layers = _targets(sorted(lora.factors, key=torch_order), lora.num_layers)
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "inference_mode": True,
        "base_model_name_or_path": base_model,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.use_rslora,
        "target_modules": targets,
        "layers_to_transform": layers,
        "rank_pattern": {},
        "alpha_pattern": {},
        "bias": "none",
        "fan_in_fan_out": False,
        "modules_to_save": None,
    }
    (folder / CONFIG_NAME).write_bytes(json_file(values))


def _put_factors(folder: Path, factors: Factors) -> None:
    tensors: dict[str, Array] = {}
    for key in sorted(factors, key=torch_order):
        a, b = factors[key]
        tensors[f"base_model.model.{key.path}.lora_A.weight"] = a
        tensors[f"base_model.model.{key.path}.lora_B.weight"] = b
    write_safetensors(folder / WEIGHTS_NAME, tensors)


def _targets(keys: Sequence[ModuleKey], num_layers: int | None) -> tuple[list[str], list[int] | None]:
    """The configuration's fields for the target modules: kinds, and layers unless all are adapted; else the modules one
    by one."""
    parts = list(parts_of(keys))
    layers = sorted({key.layer for key in keys})
    if len(keys) != len(parts) * len(layers):
        return [key.path for key in keys], None
    every = layers == list(range(layers[-1] + 1 if num_layers is None else num_layers))
    return parts, None if every else layers


def _classifier_tensors(classifier: Sequence[Linear], names: Sequence[str]) -> dict[str, Array]:
    tensors: dict[str, Array] = {}
    for name, (weight, bias) in zip(names, classifier, strict=True):
        tensors[f"{name}.weight"] = weight
        if bias is not None:
            tensors[f"{name}.bias"] = bias
    return tensors


def _shared_fields(config: XLoRAConfig) -> dict[str, Any]:
    """The fields that both formats have."""
    return {
        "hidden_size": config.hidden_size,
        "layerwise_scalings": config.layerwise_scalings,
        "xlora_depth": config.xlora_depth,
        "xlora_size": config.xlora_size,
        "xlora_dropout_p": config.xlora_dropout_p,
        "enable_softmax": config.enable_softmax,
        "enable_softmax_topk": config.enable_softmax_topk,
        "softmax_temperature": config.softmax_temperature,
        "top_k_lora": config.top_k_lora,
        "scaling_pass_value": config.scaling_pass_value,
        "global_scaling_weight": config.global_scaling_weight,
        "use_trainable_adapters": False,
    }


def _adapter_bytes(adapter: Adapter) -> int:
    if isinstance(adapter, Path):
        return sum((adapter / name).stat().st_size for name in _LORA_FILES)
    return _bytes(adapter.factors)


def _bytes(factors: Factors) -> int:
    return sum(a.nbytes + b.nbytes for a, b in factors.values())
