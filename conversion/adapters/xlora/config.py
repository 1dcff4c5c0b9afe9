"""`xlora_config.json`: the shape of the classifier, and how its outputs become adapter weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conversion.adapters.json_object import JSONObject
from conversion.adapters.natural_sort import natural_sort


@dataclass(frozen=True, kw_only=True)
class XLoRAConfig:
    """The fields of the file under their own names, with the defaults of the original implementation."""

    hidden_size: int
    """D of the base model."""
    base_model_id: str | None = None
    adapters: tuple[str, ...] | None = None
    """Names of the adapters in the order of the classifier's columns."""
    layerwise_scalings: bool = False
    """Whether each adapted module has scalings of its own."""
    xlora_depth: int = 1
    """Linear layers of the classifier."""
    xlora_size: int = 2048
    """Width between them."""
    enable_relu_and_dropout: bool = True
    use_bias: bool = True
    xlora_dropout_p: float = 0.2
    """Dropout between the layers, in training only."""
    enable_softmax: bool = True
    enable_softmax_topk: bool = False
    """A second softmax over the adapters that `top_k_lora` left."""
    softmax_temperature: float = 1.0
    top_k_lora: int | None = None
    """Adapters kept for each token and module; None: all."""
    scaling_pass_value: float = 0.0
    """Weight of every adapter while the scalings are computed."""
    global_scaling_weight: float = 1.0
    """Factor of every adapter's contribution, in both passes."""

    def widths(self, outputs: int) -> list[int]:
        """Values before, between and after the classifier's linear layers.

        Args:
          outputs: of the last layer.
        """
        return [self.hidden_size, *[self.xlora_size] * (self.xlora_depth - 1), outputs]


def read_xlora_config(path: Path) -> tuple[XLoRAConfig, Mapping[str, str]]:
    """Read `xlora_config.json`, or the `adapter_config.json` of an X-LoRA model in PEFT's format.

    Returns:
      The configuration, and the path that it gives for each adapter, where it does. Unknown fields are ignored: old
      files and those of PEFT have some.
    Raises:
      AdapterError: the file is missing or broken, or a field has an invalid value.
    """
    fields = JSONObject.read(path)
    by_peft = fields.text("peft_type") is not None
    names, paths = _adapters(fields)
    config = XLoRAConfig(
        hidden_size=fields.whole("hidden_size", least=1),
        base_model_id=fields.text("base_model_name_or_path" if by_peft else "base_model_id"),
        adapters=names,
        layerwise_scalings=fields.flag("layerwise_scalings", False),
        xlora_depth=fields.whole("xlora_depth", 1, least=1),
        xlora_size=fields.whole("xlora_size", 2048, least=1),
        enable_relu_and_dropout=by_peft or fields.flag("enable_relu_and_dropout", True),
        use_bias=by_peft or fields.flag("use_bias", True),
        xlora_dropout_p=fields.number("xlora_dropout_p", 0.2),
        enable_softmax=fields.flag("enable_softmax", True),
        enable_softmax_topk=fields.flag("enable_softmax_topk", False),
        softmax_temperature=fields.number("softmax_temperature", 1.0),
        top_k_lora=fields.whole("top_k_lora", least=1) if "top_k_lora" in fields else None,
        scaling_pass_value=fields.number("scaling_pass_value", 0.0),
        global_scaling_weight=fields.number("global_scaling_weight", 1.0),
    )
    if config.softmax_temperature <= 0:
        raise fields.wrong("softmax_temperature", "a number above 0")
    if not 0 <= config.xlora_dropout_p < 1:
        raise fields.wrong("xlora_dropout_p", "a number from 0 to below 1")
    return config, paths


def _adapters(fields: JSONObject) -> tuple[tuple[str, ...] | None, Mapping[str, str]]:
    """Names and paths. PEFT sorts the names of an object as texts when it writes them, so numbers have to be sorted
    again."""
    if not isinstance(fields.values.get("adapters"), dict):
        names = fields.texts("adapters") or ()
        if len(set(names)) < len(names):
            raise fields.wrong("adapters", "each name once")
        return names or None, {}
    paths = fields.object("adapters") or {}
    if not all(isinstance(path, str) for path in paths.values()):
        raise fields.wrong("adapters", "an object of paths, or a list of names")
    numbered = all(name.isascii() and name.isdecimal() for name in paths)
    return tuple(natural_sort(paths) if numbered else paths) or None, paths
