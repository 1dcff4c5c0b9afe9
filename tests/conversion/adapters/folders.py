"""Folders of adapters for tests, made by hand as other libraries write them, for a tiny model whose sizes all
differ."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.adapters.modules import PARTS, ModuleKey
from conversion.weights.safetensors_io import write_safetensors

HIDDEN = 20
NUM_LAYERS = 3
FEATURES = {
    "q_proj": (24, HIDDEN),
    "k_proj": (12, HIDDEN),
    "v_proj": (12, HIDDEN),
    "o_proj": (HIDDEN, 24),
    "gate_proj": (28, HIDDEN),
    "up_proj": (28, HIDDEN),
    "down_proj": (HIDDEN, 28),
}
"""(out, in)"""
PEFT_PREFIX = "base_model.model."
BASE = "tiny-lab/tiny-base"

Factors = dict[ModuleKey, tuple[np.ndarray, np.ndarray]]


def keys(parts: Iterable[str] = PARTS, layers: Iterable[int] = range(NUM_LAYERS)) -> list[ModuleKey]:
    return [ModuleKey(layer, part) for layer in layers for part in PARTS if part in parts]


def random_factors(
    modules: Iterable[ModuleKey], rank: int = 2, *, seed: int = 0, dtype: Any = np.float32, ranks: Any = None
) -> Factors:
    """A and B of each module; `ranks` gives some of them another rank."""
    rng = np.random.default_rng(seed)
    factors: Factors = {}
    for key in modules:
        out_features, in_features = FEATURES[key.part]
        r = (ranks or {}).get(key, rank)
        factors[key] = (
            rng.normal(size=(r, in_features)).astype(dtype),
            rng.normal(size=(out_features, r)).astype(dtype),
        )
    return factors


def peft_tensors(factors: Factors, *, prefix: str = PEFT_PREFIX, infix: str = "") -> dict[str, np.ndarray]:
    """The tensors of an adapter's file; `infix`: the adapter's name and a dot."""
    tensors: dict[str, np.ndarray] = {}
    for key, (a, b) in factors.items():
        tensors[f"{prefix}{key.path}.lora_A.{infix}weight"] = a
        tensors[f"{prefix}{key.path}.lora_B.{infix}weight"] = b
    return tensors


def peft_config(**changes: Any) -> dict[str, Any]:
    """What PEFT writes for an adapter of all linear layers."""
    return {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": BASE,
        "bias": "none",
        "exclude_modules": None,
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "layers_pattern": None,
        "layers_to_transform": None,
        "lora_alpha": 8,
        "lora_bias": False,
        "lora_dropout": 0.05,
        "megatron_config": None,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 2,
        "rank_pattern": {},
        "revision": None,
        "target_modules": ["v_proj", "gate_proj", "q_proj", "down_proj", "o_proj", "k_proj", "up_proj"],
        "task_type": "CAUSAL_LM",
        "trainable_token_indices": None,
        "use_dora": False,
        "use_rslora": False,
        **changes,
    }


def write_folder(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Path:
    """A PEFT folder with these contents."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(config, sort_keys=True))
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return folder


def write_adapter(folder: Path, modules: Iterable[ModuleKey] | None = None, *, seed: int = 0, **config: Any) -> Path:
    """A PEFT folder with random factors, whose configuration targets the parts of these modules."""
    modules = keys() if modules is None else list(modules)
    targets = sorted({key.part for key in modules})
    settings = peft_config(**{"target_modules": targets, **config})
    return write_folder(folder, settings, peft_tensors(random_factors(modules, settings["r"], seed=seed)))


def xlora_config(**changes: Any) -> dict[str, Any]:
    """xlora_config.json as the original implementation writes it."""
    return {
        "hidden_size": HIDDEN,
        "base_model_id": BASE,
        "adapters": ["adapter_1", "adapter_2", "adapter_10"],
        "enable_softmax": True,
        "enable_softmax_topk": False,
        "layerwise_scalings": True,
        "xlora_depth": 1,
        "xlora_size": 2048,
        "enable_relu_and_dropout": True,
        "use_bias": True,
        "xlora_dropout_p": 0.2,
        "use_trainable_adapters": False,
        "softmax_temperature": 1.0,
        "top_k_lora": None,
        "scaling_pass_value": 0.0,
        "global_scaling_weight": 1.0,
        "stop_token_id": None,
        **changes,
    }


def classifier_linears(sizes: Iterable[int], *, bias: bool = True, seed: int = 0) -> list[tuple[np.ndarray, Any]]:
    """Weights and biases between these sizes."""
    rng = np.random.default_rng(seed)
    sizes = list(sizes)
    return [
        (rng.normal(size=(out, into)).astype(np.float32), rng.normal(size=out).astype(np.float32) if bias else None)
        for into, out in itertools.pairwise(sizes)
    ]


def classifier_tensors(linears: list[tuple[np.ndarray, Any]], names: Iterable[str]) -> dict[str, np.ndarray]:
    """The tensors of a classifier whose layers have these names."""
    tensors: dict[str, np.ndarray] = {}
    for name, (weight, bias) in zip(names, linears, strict=True):
        tensors[f"{name}.weight"] = weight
        if bias is not None:
            tensors[f"{name}.bias"] = bias
    return tensors


TWO_PARTS = ["q_proj", "gate_proj"]
ROWS = NUM_LAYERS * len(TWO_PARTS) * 3
"""Outputs of the classifier of `write_hub`."""


def write_hub(
    folder: Path,
    *,
    tensors: Mapping[str, np.ndarray] | None = None,
    names: Iterable[str] = ("adapter_1", "adapter_2", "adapter_10"),
    **changes: Any,
) -> Path:
    """An X-LoRA model in the original layout: three adapters of q and gate, a layerwise classifier of depth 1."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "xlora_config.json").write_text(json.dumps(xlora_config(**changes)))
    if tensors is None:
        tensors = classifier_tensors(classifier_linears([HIDDEN, ROWS]), ["last"])
    write_safetensors(folder / "xlora_classifier.safetensors", tensors)
    for seed, name in enumerate(names):
        write_adapter(folder / name, keys(TWO_PARTS), seed=seed)
    return folder
