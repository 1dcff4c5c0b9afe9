"""Weights of an X-LoRA classifier in files: `xlora_classifier.safetensors`, and PEFT's `adapter_model.safetensors`.

Both keep the modules of a list in which activations have numbers, too, so linear layer k has number k, 2k (ReLU
between) or 3k (ReLU and dropout between). The original has `inner.{number}` and `last`; PEFT has `layers.{number}` for
all of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from conversion.adapters.errors import AdapterError
from conversion.adapters.tensor_checks import check_floating, not_finite
from conversion.adapters.xlora.config import XLoRAConfig
from conversion.weights.safetensors_io import SafetensorsFile, read_array
from conversion.weights.tensor_source import Array

Linear = tuple[Array, Array | None]
"""Weight [out, in] and bias [out]."""

_TENSOR = re.compile(
    r"(?:base_model\.)?(?:internal_xlora_classifier\.)?"
    r"(?:(?P<list>inner|layers)\.(?P<number>\d{1,4})|(?P<last>last))\.(?P<kind>weight|bias)",
    re.ASCII,
)


def read_classifier(path: Path, config: XLoRAConfig, *, rows: int, rows_are: str) -> tuple[Linear, ...]:
    """The linear layers of a classifier, first to last, in their stored type.

    Args:
      rows: outputs of the last layer.
      rows_are: how that number is made up, such as "15 modules x 3 adapters".
    Raises:
      AdapterError: a tensor is missing, of another shape than the configuration says, not finite, or unknown.
      WeightFileError: this is not a complete safetensors file.
    """
    file = SafetensorsFile(path)
    try:
        linears: list[Linear] = []
        for name, (out_features, in_features, why) in zip(
            _names(file, config.xlora_depth), _shapes(config, rows, rows_are), strict=True
        ):
            weight = _read(file, f"{name}.weight", (out_features, in_features), why)
            has_bias = f"{name}.bias" in file.names()
            if has_bias != config.use_bias:
                found = "has one" if has_bias else "has none"
                raise AdapterError(f"{path}: use_bias is {str(config.use_bias).lower()}, and {name} {found}")
            bias = _read(file, f"{name}.bias", (out_features,), why) if has_bias else None
            linears.append((weight, bias))
        return tuple(linears)
    finally:
        file.close()


def _shapes(config: XLoRAConfig, rows: int, rows_are: str) -> list[tuple[int, int, str]]:
    """(out, in) of each layer, and an explanation of the two."""
    inputs, outputs = f"hidden_size {config.hidden_size}", f"{rows_are} = {rows}"
    if config.xlora_depth == 1:
        return [(rows, config.hidden_size, f"{outputs}, {inputs}")]
    width = config.xlora_size
    between = f"xlora_size {width}"
    return [
        (width, config.hidden_size, f"{between}, {inputs}"),
        *((width, width, between) for _ in range(config.xlora_depth - 2)),
        (rows, width, f"{outputs}, {between}"),
    ]


def _names(file: SafetensorsFile, depth: int) -> list[str]:
    """What the layers are called, first to last."""
    layers: dict[tuple[str, int], str] = {}
    for name in file.names():
        match = _TENSOR.fullmatch(name)
        if match is None:
            raise AdapterError(f"{file.path}: tensor {name} is not part of an X-LoRA classifier")
        place = ("last", 0) if match["last"] else (match["list"], int(match["number"]))
        stem = name.rpartition(".")[0]
        if layers.setdefault(place, stem) != stem:
            raise AdapterError(f"{file.path}: both {layers[place]} and {stem} are the same layer of the classifier")
    lists = {kind for kind, _ in layers if kind != "last"}
    if "layers" in lists and (len(lists) > 1 or ("last", 0) in layers):
        raise AdapterError(f"{file.path} mixes names of two formats: layers.0 and so on, and inner.0 and last")
    kind = "layers" if "layers" in lists or not layers else "inner"
    numbers = sorted(number for stored, number in layers if stored == kind)
    expected = depth if kind == "layers" else depth - 1
    whole = len(numbers) == expected and any(numbers == list(range(0, step * expected, step)) for step in (1, 2, 3))
    if not whole or (kind == "inner" and ("last", 0) not in layers):
        raise AdapterError(_incomplete(file, kind, numbers, depth, [stem for _, stem in sorted(layers.items())]))
    named = [layers[kind, number] for number in numbers]
    return named if kind == "layers" else [*named, layers["last", 0]]


def _incomplete(file: SafetensorsFile, kind: str, numbers: list[int], depth: int, present: list[str]) -> str:
    plural = "" if depth == 1 else "s"
    found = (
        f"{file.path} has {', '.join(present) or 'no tensors'}, and xlora_depth is {depth}: "
        f"expected {depth} linear layer{plural}"
    )
    if kind == "inner":
        inner = f"inner.0{' and so on' if depth > 2 else ''}, then " if depth > 1 else ""
        return f"{found}, {inner}last"
    lost = "" if numbers[:1] == [0] else ". PEFT from 0.20 on loses layers when it saves X-LoRA models"
    return f"{found}, from layers.0 on{lost}"


def _read(file: SafetensorsFile, name: str, shape: tuple[int, ...], why: str) -> Array:
    if name not in file.names():
        raise AdapterError(f"{file.path}: tensor {name} is missing")
    if file.shape(name) != shape:
        raise AdapterError(
            f"{file.path}: the classifier's tensor {name} has shape {list(file.shape(name))}; "
            f"expected {list(shape)} ({why})"
        )
    check_floating(file, name)
    array = read_array(file, name)
    if (bad := not_finite(array)) is not None:
        raise AdapterError(
            f"{file.path}: the classifier's tensor {name} holds {bad}; its training diverged, or it is damaged"
        )
    return array
