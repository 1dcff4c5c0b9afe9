"""Reads the fields of a `MistralConfig` from a parsed `params.json` (Mistral's own format)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.config.params_file import read_params
from mistral_jax.model.config_error import ConfigError
from mistral_jax.model.rope_config import params_rope


def params_fields(params: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the `MistralConfig` that `params.json` describes.

    Raises:
      ConfigError: see `MistralConfig.from_mistral`.
    """
    model = read_params(params, error=ConfigError)
    beta, length = model.temperature
    return {
        "architecture": "MistralForCausalLM",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_layers": model.num_layers,
        "num_heads": model.num_heads,
        "num_kv_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps,
        "max_position_embeddings": model.max_positions,
        "rope": params_rope(model),
        "layer_windows": model.windows,
        "attention_temperature_beta": beta,
        "attention_temperature_length": length,
        "tie_word_embeddings": model.tied_embeddings,
        "dtype": "bfloat16",
    }
