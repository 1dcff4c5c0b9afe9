"""X-LoRA models on disk: a configuration, a classifier and its adapters, in any layout of
`conversion.adapters.xlora.layout`.

xlora = open_xlora("x-lora")
xlora.classifier            # weights and biases, first layer to last
xlora.layer_index           # which scalings each adapted module takes
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from conversion.adapters.errors import AdapterError
from conversion.adapters.lora.files import LoRAFiles, check_fits, open_lora
from conversion.adapters.modules import ModuleKey
from conversion.adapters.xlora.classifier import Linear, read_classifier
from conversion.adapters.xlora.config import XLoRAConfig, read_xlora_config
from conversion.adapters.xlora.layout import choose_adapters, find_layout
from conversion.adapters.xlora.ordering import Ordering, check_base_model, check_ordering, derive_layers

__all__ = ["AdapterError", "XLoRAFiles", "check_xlora_fits", "open_xlora"]


@dataclass(frozen=True, kw_only=True)
class XLoRAFiles:
    """A mixture of adapters on disk. The classifier is read, the adapters are opened."""

    folder: Path
    config: XLoRAConfig
    """Its `adapters` are the names of the adapters that were opened."""
    adapters: tuple[LoRAFiles, ...]
    """In the order of the classifier's columns."""
    classifier_file: Path
    classifier: tuple[Linear, ...]
    """Weight [out, in] and bias [out] of each linear layer, first to last. An output's number is module * A +
    adapter."""
    layer_index: Mapping[ModuleKey, int]
    """For each module that some adapter changes, which of the classifier's scalings it takes."""
    num_columns: int
    """L: sets of scalings that the classifier gives; 1 if it is not layerwise."""
    ordering: Ordering | None
    """As given, with names instead of positions."""

    @property
    def classifier_parameters(self) -> int:
        """Values in all of the classifier's layers."""
        return sum(weight.size + (0 if bias is None else bias.size) for weight, bias in self.classifier)

    @property
    def base_models(self) -> dict[str, str | None]:
        """The base model that each file names, as `check_base_model` takes it."""
        named = {"xlora_config.json": self.config.base_model_id}
        return named if self.ordering is None else {"the ordering file": self.ordering.base_model_id, **named}

    def close(self) -> None:
        for adapter in self.adapters:
            adapter.close()


def open_xlora(folder: Path | str, *, ordering: Ordering | None = None) -> XLoRAFiles:
    """Open an X-LoRA model and check that its parts belong together.

    Without an ordering, columns are adapters in the order of the configuration, or else in natural order of their
    folders' names, and modules are numbered as the reference implementation registers them.

    Raises:
      AdapterError: something is missing, broken, not implemented or inconsistent; the message says what.
      WeightFileError: a weight file is incomplete.
    """
    layout = find_layout(Path(folder))
    config, paths = read_xlora_config(layout.config)
    order = () if ordering is None else ordering.order
    chosen = choose_adapters(layout, order=order, names=config.adapters, paths=paths)
    config = replace(config, adapters=tuple(chosen))
    if ordering is not None:
        ordering = replace(ordering, order=tuple(chosen))
        check_base_model({"the ordering file": ordering.base_model_id, layout.config.name: config.base_model_id})
    if config.top_k_lora is not None and config.top_k_lora > len(chosen):
        raise AdapterError(f"{layout.config}: top_k_lora is {config.top_k_lora}, and there are {len(chosen)} adapters")
    opened: list[LoRAFiles] = []
    try:
        opened.extend(open_lora(path, name=name) for name, path in chosen.items())
        if ordering is not None:
            check_ordering(ordering, opened, layerwise=config.layerwise_scalings)
        layer_index, num_columns = _columns(config, opened, ordering)
        classifier = read_classifier(
            layout.classifier,
            config,
            rows=num_columns * len(opened),
            rows_are=_rows_are(config, num_columns, len(opened), ordering),
        )
    except BaseException:
        for adapter in opened:
            adapter.close()
        raise
    return XLoRAFiles(
        folder=layout.folder,
        config=config,
        adapters=tuple(opened),
        classifier_file=layout.classifier,
        classifier=classifier,
        layer_index=layer_index,
        num_columns=num_columns,
        ordering=ordering,
    )


def check_xlora_fits(
    xlora: XLoRAFiles, *, hidden_size: int, num_layers: int, features: Mapping[str, tuple[int, int]]
) -> None:
    """Check that an X-LoRA model fits a base model of this shape.

    Args:
      features: (out, in) of each part.
    Raises:
      AdapterError: names the first part that does not fit.
    """
    if xlora.config.hidden_size != hidden_size:
        raise AdapterError(
            f"the X-LoRA classifier takes hidden states of {xlora.config.hidden_size} values (hidden_size), "
            f"and the model's have {hidden_size}: it was trained for another model"
        )
    for adapter in xlora.adapters:
        check_fits(adapter, num_layers=num_layers, features=features)


def _columns(
    config: XLoRAConfig, adapters: list[LoRAFiles], ordering: Ordering | None
) -> tuple[dict[ModuleKey, int], int]:
    """Index of each module's scalings, and the number of sets of scalings."""
    derived = derive_layers(key for adapter in adapters for key in adapter.modules)
    if not config.layerwise_scalings:
        return dict.fromkeys(derived, 0), 1
    if ordering is None:
        return derived, len(derived)
    if ordering.layers is None:
        return dict.fromkeys(derived, 0), 1
    return {key: ordering.layers[key] for key in derived}, len(ordering.layers)


def _rows_are(config: XLoRAConfig, num_columns: int, num_adapters: int, ordering: Ordering | None) -> str:
    adapters = f"{num_adapters} adapters"
    if not config.layerwise_scalings:
        return f"{adapters} (layerwise_scalings is false)"
    source = "that the adapters change" if ordering is None else "in the ordering"
    return f"{num_columns} modules {source} x {adapters}"
