"""What a model would need in memory, from the types and shapes of its tensors alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

from conversion.config.class_defaults import CLASS_DEFAULTS
from conversion.weights.ggml_types import GGMLType
from conversion.weights.stored_shapes import kv_bytes_per_token
from conversion.weights.weight_forms import form_bytes, form_of

_ITEMSIZE = 2
"""Of bfloat16, in which models compute by default."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the device for a model that computes in bfloat16. In addition programs need room for activations, and
    ragged matrices for some rows of zeros."""

    weights: Mapping[str, int]
    """All weights, by the value of `--quant`: none (bfloat16), auto (packed where the file has them packed), q8_0,
    q4_k."""
    cache_per_token: int | None
    """Keys and values of one token in all layers (sliding windows, which bound them, not counted); None: unknown
    shape."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of the model as it is stored."""

    shape: tuple[int, ...]
    kind: GGMLType | None
    """None: a type that ggml does not have."""
    is_output: bool
    """Whether it computes the logits: the output matrix, or the embedding of a model without one."""


def estimate_memory(tensors: Iterable[StoredTensor], config: Mapping[str, Any] | None) -> MemoryEstimate:
    """Add up the bytes of the tensors for each value of `--quant`.

    Args:
      config: the model's `config.json`; None: unknown.
    """
    present = list(tensors)
    weights = {quant: sum(_nbytes(tensor, quant) for tensor in present) for quant in ("none", "auto", "q8_0", "q4_k")}
    return MemoryEstimate(weights=weights, cache_per_token=None if config is None else cache_bytes_per_token(config))


def _nbytes(tensor: StoredTensor, quant: str) -> int:
    return form_bytes(form_of(tensor.kind, tensor.shape, quant, is_output=tensor.is_output), tensor.shape, _ITEMSIZE)


def cache_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """Bytes of the keys and values of one token in bfloat16; None where the configuration lacks the sizes."""

    def size(key: str) -> int | None:
        value: Any = text.get(key)
        value = defaults.get(key) if value is None else value
        return value if type(value) is int and 0 < value < 2**31 else None

    inner = config.get("text_config")
    text: Mapping[str, Any] = cast("Mapping[str, Any]", inner) if isinstance(inner, dict) else config
    model_type = text.get("model_type")
    defaults = CLASS_DEFAULTS.get(model_type, {}) if isinstance(model_type, str) else {}
    layers, heads, width = size("num_hidden_layers"), size("num_attention_heads"), size("hidden_size")
    kv_heads = size("num_key_value_heads") or heads
    head_dim = size("head_dim") or (width // heads if width and heads else None)
    if not layers or not kv_heads or not head_dim:
        return None
    return kv_bytes_per_token(num_layers=layers, num_kv_heads=kv_heads, head_dim=head_dim, itemsize=_ITEMSIZE)
