"""What is in a folder of adapters, as text for `conversion.inspection.inspection`. Weights of adapters are not read;
those of an X-LoRA classifier are, since they are few."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.config import CONFIG_NAME
from conversion.adapters.lora.files import WEIGHTS_NAME, LoRAFiles, open_lora
from conversion.adapters.xlora.files import XLoRAFiles, open_xlora
from conversion.adapters.xlora.layout import is_xlora_folder
from conversion.files.regular_file import is_file


@dataclass(frozen=True, kw_only=True)
class AdapterDescription:
    """A LoRA adapter or an X-LoRA model."""

    format: str
    weight_files: tuple[Path, ...]
    facts: Mapping[str, str]
    problem: str | None
    """Why it could not be used; None: the headers show no problem."""


def is_adapter_folder(folder: Path) -> bool:
    """Whether a folder contains adapters and no model.

    Raises:
      AdapterError: its `adapter_config.json` cannot be read.
    """
    if is_xlora_folder(folder):
        return True
    is_model = is_file(folder / "config.json") and not is_file(folder / WEIGHTS_NAME)
    return is_file(folder / CONFIG_NAME) and not is_model


def describe(folder: Path) -> AdapterDescription:
    """Look at a folder for which `is_adapter_folder` holds.

    Raises:
      AdapterError: it has no readable weights.
      WeightFileError: a weight file is incomplete.
    """
    title = "X-LoRA model" if is_xlora_folder(folder) else "LoRA adapter"
    try:
        if is_xlora_folder(folder):
            xlora = open_xlora(folder)
            xlora.close()
            files = (xlora.classifier_file, *(adapter.weight_file for adapter in xlora.adapters))
            return AdapterDescription(format=title, weight_files=files, facts=_xlora_facts(xlora), problem=None)
        lora = open_lora(folder)
        lora.close()
        return AdapterDescription(format=title, weight_files=(lora.weight_file,), facts=_lora_facts(lora), problem=None)
    except AdapterError as error:
        found = tuple(sorted(folder.rglob("*.safetensors")))
        if not found:
            raise
        return AdapterDescription(format=title, weight_files=found, facts={}, problem=str(error))


def _lora_facts(lora: LoRAFiles) -> dict[str, str]:
    modules = lora.modules.values()
    layers = len({key.layer for key in lora.modules})
    return {
        "base model": lora.base_model or "not given",
        "rank": _span(module.rank for module in modules),
        "scale": _span(module.scale for module in modules) + (" (rslora)" if lora.config.use_rslora else ""),
        "targets": f"{', '.join(lora.parts)}; {len(modules)} modules in {layers} layers",
        "dropout in training": f"{lora.config.dropout:g}",
    }


def _xlora_facts(xlora: XLoRAFiles) -> dict[str, str]:
    config, count = xlora.config, len(xlora.adapters)
    widths = [config.hidden_size, *(len(weight) for weight, _ in xlora.classifier)]
    parameters = xlora.classifier_parameters
    between = ", ReLU between" if config.enable_relu_and_dropout and config.xlora_depth > 1 else ""
    scalings = f"for each of {xlora.num_columns} modules" if config.layerwise_scalings else "one set for all modules"
    weights = [f"softmax, temperature {config.softmax_temperature:g}"] if config.enable_softmax else ["no softmax"]
    if config.top_k_lora is not None:
        weights.append(f"the {config.top_k_lora} largest{', softmax of these' if config.enable_softmax_topk else ''}")
    elif config.enable_softmax_topk:
        weights.append("softmax once more")
    facts = {
        "base model": config.base_model_id or "not given",
        "classifier": f"depth {config.xlora_depth}: {' -> '.join(map(str, widths))}{between}; "
        f"{parameters:,} parameters",
        "scalings": f"{count} adapters, {scalings}; {', '.join(weights)}",
        "scaling pass value": f"{config.scaling_pass_value:g}",
        "global scaling weight": f"{config.global_scaling_weight:g}",
    }
    for adapter in xlora.adapters:
        own = _lora_facts(adapter)
        facts[f"adapter {adapter.name}"] = (
            f"rank {own['rank']}, scale {own['scale']}; {adapter.parameters:,} parameters; {own['targets']}"
        )
    return facts


def _span(values: Iterable[float]) -> str:
    known = sorted(set(values))
    return f"{known[0]:g}" if len(known) == 1 else f"{known[0]:g} to {known[-1]:g}"
