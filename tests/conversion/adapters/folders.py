"""Folders of adapters for tests, made by hand as other libraries write them, for a tiny model whose sizes all differ."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conversion.adapters.modules import PARTS, ModuleKey
from conversion.safetensors_io import write_safetensors

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
