"""What `xlora_config.json` says: the shape of the classifier, and how its outputs become weights of the adapters."""

from __future__ import annotations

from dataclasses import dataclass


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
    """Softmax once more over what `top_k_lora` left."""
    softmax_temperature: float = 1.0
    top_k_lora: int | None = None
    """Adapters kept for each token and module; None: all."""
    scaling_pass_value: float = 0.0
    """Weight of every adapter while the scalings are computed."""
    global_scaling_weight: float = 1.0
    """Factor of every adapter's contribution, in both passes."""
