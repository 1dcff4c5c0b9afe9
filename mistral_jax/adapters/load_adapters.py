"""Loads adapters from files to the device: opens and checks them against the model, then reads their weights.

    files = open_adapters(description.config, xlora="lamm-mit/x-lora", loras={"poet": "./poet"})
    adapters, xlora = load_adapters(files, dtype=model.dtype)
    runner = Runner(model, slots=8, length=2048, adapters=adapters, xlora=xlora)

Opening reads headers, configurations and the classifier, so that mismatches are found before gigabytes of weights are
read.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax import nnx

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import LoRAFiles, check_fits, open_lora
from conversion.adapters.modules import torch_order
from conversion.adapters.xlora.files import XLoRAFiles, check_xlora_fits, open_xlora
from conversion.adapters.xlora.ordering import check_base_model, read_ordering
from conversion.hub_id import is_hub_id
from conversion.weights.stored_shapes import storable_shape
from mistral_jax.adapters.bank import SPARE_RANK, AdapterSet, bank_bytes
from mistral_jax.adapters.xlora import XLoRA
from mistral_jax.hub.files import find_adapter
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import SHARED, ScalingColumns, part_features
from mistral_jax.quant.array import padded
from mistral_jax.quant.placement import Placement

logger = logging.getLogger("mistral_jax")


@dataclass(frozen=True, kw_only=True)
class AdapterFiles:
    """Adapters on disk that fit a base model; experts of an X-LoRA mixture first, in the order of its columns."""

    config: MistralConfig
    """The base model's."""
    loras: tuple[LoRAFiles, ...]
    xlora: XLoRAFiles | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(lora.name for lora in self.loras)

    def close(self) -> None:
        for lora in self.loras:
            lora.close()


class LoadedAdapters(NamedTuple):
    """Adapters on the device, for a `Runner`."""

    adapters: AdapterSet
    xlora: XLoRA | None


def open_adapters(
    config: MistralConfig,
    *,
    xlora: str | Path | None = None,
    ordering: str | Path | None = None,
    loras: Mapping[str, str | Path] | None = None,
    base_model: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> AdapterFiles:
    """Find adapters, download missing ones, and check that they fit the base model.

    Args:
      config: the base model's.
      xlora: Hub id or folder of an X-LoRA model with its adapters.
      ordering: its ordering file; adapters that this preloads are loaded as well.
      loras: Hub ids or folders by adapter name.
      base_model: the base model's name; if it is a Hub id, the X-LoRA model must not name another one.
      revision: of `xlora` on the Hub.
      token: see `mistral_jax.hub.files.find_model`.
    Raises:
      ModelNotFoundError: an adapter does not exist, or cannot be downloaded.
      AdapterError, WeightFileError: files are broken, not implemented, or do not fit the model or each other; two
        adapters have the same name.
    """
    wanted: dict[str, str | Path] = {}
    experts: tuple[LoRAFiles, ...] = ()
    opened: list[LoRAFiles] = []
    files: XLoRAFiles | None = None
    if ordering is not None and xlora is None:
        raise AdapterError(f"{ordering}: an ordering belongs to an X-LoRA model, and none is given")
    try:
        if xlora is not None:
            chosen = None if ordering is None else read_ordering(ordering)
            files = open_xlora(find_adapter(str(xlora), revision=revision, token=token), ordering=chosen)
            experts = files.adapters
            opened += experts
            _check_xlora(files, config, base_model)
            for adapter in () if chosen is None else chosen.preload_adapters:
                wanted[adapter.name] = adapter.adapter_model_id
        for name, source in (loras or {}).items():
            if name in wanted:
                raise AdapterError(f"the ordering file preloads an adapter {name!r} already; choose another name")
            wanted[name] = source
        for name, source in wanted.items():
            if name in {lora.name for lora in experts}:
                raise AdapterError(f"an adapter of the X-LoRA model is called {name!r}; choose another name")
            opened.append(open_lora(find_adapter(str(source), token=token), name=name))
            check_fits(opened[-1], num_layers=config.num_layers, features=part_features(config))
            _warn_other_base(opened[-1], base_model)
    except BaseException:
        for lora in opened:
            lora.close()
        raise
    return AdapterFiles(config=config, loras=tuple(opened), xlora=files)


def _check_xlora(files: XLoRAFiles, config: MistralConfig, base_model: str | None) -> None:
    try:
        check_base_model({**files.base_models, "the base model that was chosen": base_model})
    except AdapterError as error:
        raise AdapterError(f"{error}; to use the model anyway, give a folder that holds it") from error
    check_xlora_fits(
        files, hidden_size=config.hidden_size, num_layers=config.num_layers, features=part_features(config)
    )


def _warn_other_base(lora: LoRAFiles, base_model: str | None) -> None:
    """Warn if an adapter names another base model. No error: adapters are often used with fine-tuned models."""
    theirs = lora.base_model
    if base_model is None or theirs is None or not is_hub_id(base_model) or not is_hub_id(theirs):
        return
    if base_model.casefold() != theirs.casefold():
        logger.warning("adapter %s was trained for %s; it is used with %s", lora.name, theirs, base_model)


def load_adapters(
    files: AdapterFiles,
    *,
    dtype: jax.typing.DTypeLike,
    placement: Placement | None = None,
    spare: int = 0,
    spare_rank: int = SPARE_RANK,
) -> LoadedAdapters:
    """Put adapters and their classifier on the device.

    Args:
      dtype: of the factors, normally the model's; the classifier is float32.
      placement: None: JAX's default device.
      spare: number of further adapters, of at most `spare_rank`, to reserve room for.
    Raises:
      WeightFileError: a value is not finite, or a file is truncated.
    """
    target = placement or Placement.default()
    adapters = AdapterSet(files.config, files.loras, dtype=dtype, placement=target, spare=spare, spare_rank=spare_rank)
    return LoadedAdapters(adapters, None if files.xlora is None else load_classifier(files.xlora, target))


def load_classifier(files: XLoRAFiles, placement: Placement | None = None) -> XLoRA:
    """The classifier of an X-LoRA model, on the device."""
    columns = SHARED
    if files.config.layerwise_scalings:
        index = sorted(files.layer_index.items(), key=lambda item: torch_order(item[0]))
        columns = ScalingColumns(count=files.num_columns, index=tuple(index))
    module = nnx.eval_shape(
        lambda: XLoRA(files.config, num_experts=len(files.adapters), columns=columns, rngs=nnx.Rngs(0))
    )
    target = placement or Placement.default()
    for layer, (weight, bias) in zip(module.layers, files.classifier, strict=True):
        layer.weight.set_value(padded(target.put(np.asarray(weight, np.float32))))
        if layer.bias is not None and bias is not None:
            layer.bias.set_value(target.put(np.asarray(bias, np.float32)))
    return module


def adapter_bytes(
    files: AdapterFiles, *, dtype: jax.typing.DTypeLike, spare: int = 0, spare_rank: int = SPARE_RANK
) -> int:
    """Device bytes that `load_adapters` will use."""
    bank = bank_bytes(files.config, files.loras, dtype=dtype, spare=spare, spare_rank=spare_rank)
    return bank + (0 if files.xlora is None else _classifier_bytes(files.xlora))


def _classifier_bytes(files: XLoRAFiles) -> int:
    layers = files.classifier
    values = sum(math.prod(storable_shape(*w.shape)) + (0 if b is None else b.size) for w, b in layers)
    return 4 * values
