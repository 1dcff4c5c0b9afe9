"""A parsed `params.json`, of Mistral's own format, as the fields of a `MistralConfig`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from conversion.config.model_sizes import (
    MOST_HEAD_DIM,
    MOST_HEADS,
    MOST_INNER_WIDTH,
    MOST_LAYERS,
    MOST_TOKENS,
    MOST_WIDTH,
)
from conversion.files.json_fields import LARGEST, JSONFields
from mistral_jax.model.config_error import ConfigError
from mistral_jax.model.rope_config import RopeConfig, params_rope


def params_fields(params: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the `MistralConfig` that `params.json` describes.

    Raises:
      ConfigError: see `MistralConfig.from_mistral`.
    """
    for key in ("moe", "quantization", "q_lora_rank", "kv_lora_rank", "lora"):
        if params.get(key):
            raise ConfigError(f"params.json: {key!r} is not implemented")
    raw = JSONFields(params, error=ConfigError, source="params.json")
    num_layers, num_heads = raw.whole("n_layers", most=MOST_LAYERS), raw.whole("n_heads", most=MOST_HEADS)
    dim = raw.whole("dim", most=MOST_WIDTH)
    rope = params_rope(raw)
    beta, length = 0.0, 0
    if (tempered := raw.object("llama_4_scaling")) is not None and tempered.values:
        beta = tempered.number("beta", 0.0, above=-1, most=1e3)
        length = tempered.whole("original_max_position_embeddings", 0, least=0)
    return {
        "architecture": "MistralForCausalLM",
        "vocab_size": raw.whole("vocab_size", most=MOST_TOKENS),
        "hidden_size": dim,
        "intermediate_size": raw.whole("hidden_dim", most=MOST_INNER_WIDTH),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": raw.whole("n_kv_heads", num_heads, most=MOST_HEADS),
        "head_dim": raw.whole("head_dim", dim // num_heads, most=MOST_HEAD_DIM),
        "rms_norm_eps": raw.number("norm_eps", 1e-5, above=0, most=1),
        "max_position_embeddings": _max_positions(raw, rope),
        "rope": rope,
        "layer_windows": _windows(raw, num_layers),
        "attention_temperature_beta": beta,
        "attention_temperature_length": length,
        "tie_word_embeddings": raw.flag("tied_embeddings", False),
        "dtype": "bfloat16",
    }


def _max_positions(raw: JSONFields, rope: RopeConfig) -> int:
    for key in ("max_position_embeddings", "max_seq_len", "model_max_length"):
        if key in raw:
            return raw.whole(key)
    if rope.kind != "yarn":
        return 32768
    stretched = rope.original_max_position_embeddings * rope.factor
    if not 1 <= stretched <= LARGEST:
        raise ConfigError(
            f"params.json: yarn stretches the context to {stretched:g} tokens; expected at most {LARGEST}"
        )
    return int(stretched)


def _windows(raw: JSONFields, num_layers: int) -> tuple[int | None, ...]:
    """Sliding window of each layer; a list repeats over the layers."""
    value = raw.values.get("sliding_window")
    if not isinstance(value, list):
        return (raw.whole("sliding_window") if value is not None else None,) * num_layers
    pattern = cast("list[Any]", value)
    if not pattern or not all(item is None or (type(item) is int and 1 <= item <= LARGEST) for item in pattern):
        raise raw.wrong("sliding_window", "a positive whole number, null, or a list of such")
    return tuple(pattern[layer % len(pattern)] for layer in range(num_layers))
