"""Defaults of the reference implementation (transformers) for keys that are absent from `config.json`. Null is not the
same as absent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MODEL_TYPES: Mapping[str, str] = {
    "MistralForCausalLM": "mistral",
    "LlamaForCausalLM": "llama",
    "MinistralForCausalLM": "ministral",
    "Ministral3ForCausalLM": "ministral3",
    "Mistral3ForConditionalGeneration": "mistral",
}
"""The default model_type by architecture; for a wrapper that of its text model."""

CLASS_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048},
    "mistral": {
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
    },
    "ministral": {
        "num_key_value_heads": 8,
        "sliding_window": 4096,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 131072,
    },
    "ministral3": {
        "num_key_value_heads": 8,
        "head_dim": 128,
        "sliding_window": None,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 262144,
    },
}
"""By model_type."""
