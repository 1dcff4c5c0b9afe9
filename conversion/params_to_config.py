"""Mistral's own `params.json` as the `config.json` of the same model, so that one converter serves both formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from conversion.tensor_source import WeightFileError

_UNIMPLEMENTED = ("moe", "quantization", "q_lora_rank", "kv_lora_rank", "lora")


def params_to_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` for a parsed `params.json`. It describes the model that `MistralConfig.from_mistral` reads from it.

    Raises:
      WeightFileError: a feature that is not implemented, or a size that is missing.
    """
    for key in _UNIMPLEMENTED:
        if params.get(key):
            raise WeightFileError(f"params.json: {key!r} is not implemented")
    window = params.get("sliding_window")
    # As mistral-inference infers it: the models without a window have the larger one.
    rope: dict[str, Any] = {"rope_theta": float(params.get("rope_theta") or (1e6 if window is None else 1e4))}
    if yarn := params.get("yarn"):
        rope |= {
            "rope_type": "yarn",
            "factor": float(_required(yarn, "factor")),
            "original_max_position_embeddings": int(_required(yarn, "original_max_position_embeddings")),
            "beta_fast": float(yarn.get("beta") or 32.0),
            "beta_slow": float(yarn.get("alpha") or 1.0),
        }
        if not yarn.get("apply_scale", True):
            rope["attention_factor"] = 1.0
    tempered = params.get("llama_4_scaling") or {}
    if tempered:
        rope["llama_4_scaling_beta"] = float(tempered.get("beta") or 0.0)
        rope["original_max_position_embeddings"] = int(tempered.get("original_max_position_embeddings") or 0)
    heads, layers = int(_required(params, "n_heads")), int(_required(params, "n_layers"))
    config: dict[str, Any] = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": int(_required(params, "vocab_size")),
        "hidden_size": int(_required(params, "dim")),
        "intermediate_size": int(_required(params, "hidden_dim")),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": int(params.get("n_kv_heads") or heads),
        "head_dim": int(params.get("head_dim") or int(_required(params, "dim")) // heads),
        "rms_norm_eps": float(params.get("norm_eps", 1e-5)),
        "max_position_embeddings": _max_positions(params, rope),
        "sliding_window": window,
        "tie_word_embeddings": bool(params.get("tied_embeddings", False)),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    if isinstance(window, list):
        config |= _interleaved(cast("list[int | None]", window), layers)
    if "rope_type" in rope or tempered:
        return config | {"rope_parameters": {"rope_type": "default", **rope}}
    return config | {"rope_theta": rope["rope_theta"]}


def _required(params: Mapping[str, Any], key: str) -> Any:
    if params.get(key) is None:
        raise WeightFileError(f"params.json lacks {key!r}")
    return params[key]


def _max_positions(params: Mapping[str, Any], rope: Mapping[str, Any]) -> int:
    given = params.get("max_position_embeddings") or params.get("max_seq_len") or params.get("model_max_length")
    if given is None and rope.get("rope_type") == "yarn":
        return int(rope["original_max_position_embeddings"] * rope["factor"])
    return int(given or 32768)


def _interleaved(pattern: list[int | None], layers: int) -> dict[str, Any]:
    """Windows that differ between layers are those of Ministral 8B."""
    windows = [pattern[layer % len(pattern)] for layer in range(layers)]
    sizes = {window for window in windows if window is not None}
    if len(sizes) > 1:
        raise WeightFileError(f"params.json: sliding windows of several sizes ({sorted(sizes)}) are not implemented")
    return {
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "sliding_window": next(iter(sizes), None),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }
