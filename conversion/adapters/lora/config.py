"""`adapter_config.json` of a LoRA adapter, in PEFT's format: ranks, scales, and the target modules that it names.

Format and rules: https://huggingface.co/docs/peft/package_reference/lora.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from conversion.adapters.errors import AdapterError
from conversion.adapters.json_object import JSONObject, is_finite
from conversion.adapters.lora.name_patterns import MAX_PATTERNS, NamePattern, PatternError, PatternTable, suffixes
from conversion.files.regular_file import plain

CONFIG_NAME = "adapter_config.json"

_NOT_IMPLEMENTED = {
    "use_dora": "DoRA, which normalises the changed weights",
    "lora_bias": "a bias in its factors",
    "modules_to_save": "whole modules in the place of the base model's",
    "fan_in_fan_out": "transposed weights",
    "layer_replication": "repeated layers of the base model",
    "target_parameters": "factors of parameters that are not linear layers",
    "trainable_token_indices": "embeddings of single tokens",
    "alora_invocation_tokens": "activation by tokens of the prompt (aLoRA)",
    "use_qalora": "pooled inputs (QALoRA)",
    "use_bdlora": "block-diagonal factors (BD-LoRA)",
    "arrow_config": "routing by Arrow",
    "kasa_config": "singular values between its factors (KaSA)",
    "monteclora_config": "random factors (MonteCLoRA)",
}
"""Fields that change what an adapter computes, with the reason."""
_CHANGES_BASE = re.compile(r"pissa.*|olora|corda|loftq|lora_ga", re.IGNORECASE)
"""Values of init_lora_weights with which training changes the base model's weights, too."""


@dataclass(frozen=True, kw_only=True)
class LoRAConfig:
    """What the file says."""

    path: Path
    base_model: str | None
    rank: int
    """For modules that no pattern matches."""
    alpha: float
    dropout: float
    """In training."""
    use_rslora: bool
    """Scale by alpha / sqrt(rank) instead of alpha / rank."""
    rank_pattern: Mapping[str, int]
    """Ranks of the modules whose names end in a match of the regular expression."""
    alpha_pattern: Mapping[str, float]
    target_modules: tuple[str, ...] | str | None
    """Suffixes of module names, or a regular expression, or "all-linear"; None: not given."""
    exclude_modules: tuple[str, ...] | str | None
    layers_to_transform: frozenset[int] | None
    """None: all."""

    def rank_of(self, path: str) -> int:
        """Rank of the module with this name, such as `model.layers.0.self_attn.q_proj`."""
        return self._ranks.get(path, self.rank)

    def scale_of(self, path: str) -> float:
        """The scale of this module's product of factors."""
        alpha, rank = self._alphas.get(path, self.alpha), self.rank_of(path)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank

    def targets(self, path: str, layer: int) -> bool:
        """Whether the file says that the adapter changes the module with this name in this layer."""
        if self._excluded is not None and self._excluded(path):
            return False
        if self.target_modules is None or self._targeted is None:
            return False
        if self.target_modules == "all-linear":
            return True
        in_layers = self.layers_to_transform is None or layer in self.layers_to_transform
        return self._targeted(path) and (in_layers or isinstance(self.target_modules, str))

    def check_patterns(self) -> None:
        """Check that all patterns can be matched.

        Raises:
          AdapterError: names the first field with a pattern that cannot.
        """
        fields = {
            "rank_pattern": lambda: self._ranks,
            "alpha_pattern": lambda: self._alphas,
            "target_modules": lambda: self._targeted,
            "exclude_modules": lambda: self._excluded,
        }
        for key, compiled in fields.items():
            try:
                compiled()
            except PatternError as error:
                raise AdapterError(f"{self.path}: {key} has {error}") from error

    # Compiled once, and kept.

    @cached_property
    def _ranks(self) -> PatternTable[int]:
        return PatternTable(self.rank_pattern)

    @cached_property
    def _alphas(self) -> PatternTable[float]:
        return PatternTable(self.alpha_pattern)

    @cached_property
    def _targeted(self) -> Callable[[str], bool] | None:
        return None if self.target_modules is None else _selector(self.target_modules)

    @cached_property
    def _excluded(self) -> Callable[[str], bool] | None:
        return None if self.exclude_modules is None else _selector(self.exclude_modules)


def read_lora_config(path: Path) -> LoRAConfig:
    """Read the file.

    Raises:
      AdapterError: it is missing or broken, does not describe a LoRA, or needs something that is not implemented.
    """
    fields = JSONObject.read(path)
    kind = fields.text("peft_type")
    if kind is None or kind.upper() != "LORA":
        raise AdapterError(
            f'{path}: peft_type is {plain(kind) if kind else "missing"}; only "LORA" is implemented here'
        )
    for key, what in _NOT_IMPLEMENTED.items():
        if fields.values.get(key):
            raise AdapterError(f"{path}: {key} is set; {what}: that is not implemented")
    start = fields.values.get("init_lora_weights")
    if isinstance(start, str) and _CHANGES_BASE.fullmatch(start):
        raise AdapterError(
            f"{path}: init_lora_weights is {start!r}, with which the base model's own weights were changed, too; "
            "that is not implemented. Save the adapter for the original base (PEFT: "
            "path_initial_model_for_weight_conversion)"
        )
    config = LoRAConfig(
        path=path,
        base_model=fields.text("base_model_name_or_path"),
        rank=fields.whole("r", 8, least=1),
        alpha=fields.number("lora_alpha", 8),
        dropout=fields.number("lora_dropout", 0.0),
        use_rslora=fields.flag("use_rslora", False),
        rank_pattern=_ranks(fields),
        alpha_pattern=_alphas(fields),
        target_modules=_modules(fields, "target_modules"),
        exclude_modules=_modules(fields, "exclude_modules"),
        layers_to_transform=_layers(fields),
    )
    config.check_patterns()
    return config


def _ranks(fields: JSONObject) -> Mapping[str, int]:
    key = "rank_pattern"
    pattern = fields.object(key) or {}
    if not all(type(rank) is int and rank >= 1 for rank in pattern.values()):
        raise fields.wrong(key, "an object of ranks of at least 1")
    return pattern


def _alphas(fields: JSONObject) -> Mapping[str, float]:
    key = "alpha_pattern"
    pattern = fields.object(key) or {}
    if not all(type(alpha) in (int, float) and is_finite(alpha) for alpha in pattern.values()):
        raise fields.wrong(key, "an object of finite numbers")
    return pattern


def _modules(fields: JSONObject, key: str) -> tuple[str, ...] | str | None:
    value = fields.values.get(key)
    if isinstance(value, str):
        return value
    if value is not None and not isinstance(value, list):
        raise fields.wrong(key, "a list of module names, or a regular expression")
    return fields.texts(key) or None


def _layers(fields: JSONObject) -> frozenset[int] | None:
    value = fields.values.get("layers_to_transform")
    if value is None:
        return None
    layers = cast("list[Any]", value) if isinstance(value, list) else [value]
    if not all(type(layer) is int and layer >= 0 for layer in layers):
        raise fields.wrong("layers_to_transform", "a list of layer numbers")
    return frozenset(layers) or None


def _selector(modules: tuple[str, ...] | str) -> Callable[[str], bool]:
    """Whether a module's name is among the targets: by a pattern for the whole name, or by suffix."""
    if isinstance(modules, str):
        return NamePattern(modules).matches
    if len(modules) > MAX_PATTERNS:
        raise PatternError(f"{len(modules):,} names; expected at most {MAX_PATTERNS:,}")
    ends = frozenset(modules)
    return lambda path: not ends.isdisjoint(suffixes(path))
