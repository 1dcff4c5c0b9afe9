"""The experts of a mixture in training: opening, checking, identifying and training them.

The device holds the bank of an `AdapterSet`, with the experts side by side in rank rows; files and callers hold the
factors of each module. Rank rows in which an expert has no factors have the scale 0: training leaves them at zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from conversion.adapters.lora.files import LoRAFiles, LoRAModule
from conversion.adapters.modules import ModuleKey
from conversion.adapters.writing import Adapter, ChangedLoRA, Factors
from conversion.weights.tensor_source import Array
from mistral_jax.adapters.bank import AdapterSet
from mistral_jax.adapters.load_adapters import open_adapters
from mistral_jax.model.low_rank import AdapterBank, LowRank
from mistral_jax.quant.array import Plain, dense, padded
from mistral_jax.training.base import BaseModel
from mistral_jax.training.lora_training import BankFactors, TrainedLoRA, check_shapes


@dataclass(frozen=True, kw_only=True, eq=False)
class ChangedExpert:
    """A LoRA on disk, whose factors were trained further."""

    source: LoRAFiles
    factors: Factors
    """In the file's own types."""

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def rank(self) -> int:
        return self.source.rank

    @property
    def modules(self) -> Mapping[ModuleKey, LoRAModule]:
        return self.source.modules

    def read(self, key: ModuleKey) -> tuple[Array, Array]:
        return self.factors[key]


GivenExpert = LoRAFiles | TrainedLoRA
"""A LoRA on disk, or one in memory."""
Expert = GivenExpert | ChangedExpert
"""An expert of a trained mixture."""


def open_experts(base: BaseModel, adapters: Mapping[str, Path | str | TrainedLoRA]) -> tuple[GivenExpert, ...]:
    """The experts under their names, checked to fit the model, in their order."""
    for name, adapter in adapters.items():
        if isinstance(adapter, TrainedLoRA):
            check_shapes(name, adapter, base)
    paths = {name: str(adapter) for name, adapter in adapters.items() if not isinstance(adapter, TrainedLoRA)}
    opened = {lora.name: lora for lora in open_adapters(base.module.config, loras=paths, base_model=base.name).loras}
    return tuple(
        replace(adapter, name=name) if isinstance(adapter, TrainedLoRA) else opened[name]
        for name, adapter in adapters.items()
    )


def to_write(expert: Expert) -> Adapter:
    """In the form that the writers take."""
    match expert:
        case TrainedLoRA():
            return expert.as_new()
        case ChangedExpert():
            return ChangedLoRA(folder=expert.source.folder, factors=expert.factors)
        case LoRAFiles():
            return expert.folder


def trainable(bank: AdapterBank) -> BankFactors:
    """Copies of the factors in a bank with separate B."""
    return tuple(
        {
            projection: {"a": _copy(low_rank.a), "b": tuple(map(_copy, low_rank.apart))}
            for projection, low_rank in projections.items()
        }
        for projections in bank.layers
    )


def _copy(factor: Plain) -> jax.Array:
    return jnp.copy(dense(factor, factor.dtype))


def with_factors(bank: AdapterBank, factors: BankFactors, dtype: jax.typing.DTypeLike) -> AdapterBank:
    """A bank of the same experts with other factors, rounded to `dtype` as loading does."""

    def changed(low_rank: LowRank, own: Mapping[str, jax.Array]) -> LowRank:
        return replace(low_rank, a=padded(own["a"].astype(dtype)), b=tuple(padded(b.astype(dtype)) for b in own["b"]))

    layers = tuple(
        {projection: changed(low_rank, own[projection]) for projection, low_rank in projections.items()}
        for projections, own in zip(bank.layers, factors, strict=True)
    )
    return replace(bank, layers=layers)


def retrained(expert: GivenExpert, adapters: AdapterSet, factors: BankFactors) -> Expert:
    """An expert of `adapters` with its trained factors, on the host."""
    rows = adapters.entries[expert.name].rows
    found: dict[ModuleKey, tuple[Array, Array]] = {}
    for key, module in expert.modules.items():
        projection, low_rank = next(
            (name, low_rank) for name, low_rank in adapters.bank.layers[key.layer].items() if key.part in low_rank.parts
        )
        i, own = low_rank.parts.index(key.part), factors[key.layer][projection]
        chosen = slice(rows[0], rows[0] + module.rank)
        a, b = own["a"].reshape(*low_rank.scale.shape, -1)[i, chosen], own["b"][i][:, chosen]
        found[key] = (np.ascontiguousarray(a), np.ascontiguousarray(b))
    if isinstance(expert, TrainedLoRA):
        return replace(expert, factors=found)
    kept: dict[ModuleKey, tuple[Array, Array]] = {}
    for key, (a, b) in found.items():
        type_a, type_b = expert.types(key)
        kept[key] = (a.astype(type_a), b.astype(type_b))
    return ChangedExpert(source=expert, factors=kept)
