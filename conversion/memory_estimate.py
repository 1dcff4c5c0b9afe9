"""What a model would need in memory, from the types and shapes of its tensors alone.

This module knows what `mistral_jax.quant.plan` and `conversion.quantize` decide, without importing JAX, which takes longer than
everything that a first look at a file does; tests hold the two together.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from conversion.class_defaults import CLASS_DEFAULTS
from conversion.ggml_types import BY_NAME, GGMLType

KEPT_PACKED = frozenset(
    {"Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4"}
)
"""Block types that stay packed on the device: those of `conversion.dequantize.UNPACKABLE`."""
FALLBACKS: Mapping[str, str] = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What rows become that are no whole number of blocks of 256; where 32 does not divide them either, they stay plain."""
_ITEMSIZE = 2
"""Of bfloat16, in which models compute by default."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimate:
    """Bytes on the device for a model that computes in bfloat16. Beyond these, programs need room for their activations."""

    weights: Mapping[str, int]
    """All weights, by the value of `--quant`: none (bfloat16), auto (packed where the file has them packed), q8_0, q4_k."""
    cache_per_token: int | None
    """Keys and values of one token in all layers (sliding windows, which bound them, not counted); None: unknown shape."""


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A tensor of the model as it is stored."""

    shape: tuple[int, ...]
    kind: GGMLType | None
    """None: a type that ggml does not have."""
    is_output: bool
    """Logits are products with it: the output matrix, or the embedding of a model without one."""


def estimate_memory(tensors: Iterable[StoredTensor], config: Mapping[str, Any] | None) -> MemoryEstimate:
    """Add up what `--quant` would make of the tensors.

    Args:
      config: the model's `config.json`; None: unknown.
    """
    present = list(tensors)
    weights = {quant: sum(_nbytes(tensor, quant) for tensor in present) for quant in ("none", "auto", "q8_0", "q4_k")}
    return MemoryEstimate(weights=weights, cache_per_token=None if config is None else cache_bytes_per_token(config))


def _nbytes(tensor: StoredTensor, quant: str) -> int:
    plain = math.prod(tensor.shape) * _ITEMSIZE
    if len(tensor.shape) != 2 or quant == "none":
        return plain
    rows, columns = tensor.shape
    if quant == "auto":
        kept = tensor.kind is not None and tensor.kind.name in KEPT_PACKED
        return rows * tensor.kind.row_bytes(columns) if kept and tensor.kind is not None else plain
    wanted = "Q6_K" if quant == "q4_k" and tensor.is_output else quant.upper()
    for name in (wanted, FALLBACKS.get(wanted)):
        if name is not None and columns % BY_NAME[name].block_size == 0:
            return rows * BY_NAME[name].row_bytes(columns)
    return plain


def cache_bytes_per_token(config: Mapping[str, Any]) -> int | None:
    """Keys and values of one token in bfloat16; None where the configuration lacks what it takes."""
    text = config.get("text_config") or config
    defaults = CLASS_DEFAULTS.get(text.get("model_type") or "", {})
    layers, heads = text.get("num_hidden_layers"), text.get("num_attention_heads")
    kv_heads = text.get("num_key_value_heads") or defaults.get("num_key_value_heads") or heads
    head_dim = text.get("head_dim") or defaults.get("head_dim")
    if head_dim is None and heads and text.get("hidden_size"):
        head_dim = text["hidden_size"] // heads
    numbers = [n for n in (layers, kv_heads, head_dim) if isinstance(n, int) and n > 0]
    return 2 * math.prod(numbers) * _ITEMSIZE if len(numbers) == 3 else None
