"""Mistral's own `params.json` as the `config.json` of the same model, so that one converter serves both formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conversion.config.params_file import MistralParams, read_params
from conversion.weights.tensor_source import WeightFileError


def params_to_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` for a parsed `params.json`. It describes the model that `MistralConfig.from_mistral` reads from
    it.

    Raises:
      WeightFileError: a feature that is not implemented, or a size that is missing or out of range.
    """
    model = read_params(params, error=WeightFileError)
    rope, tempered = _rope(model), bool(model.temperature[0])
    # Only this class's queries have a temperature.
    architecture, model_type = (
        ("Ministral3ForCausalLM", "ministral3") if tempered else ("MistralForCausalLM", "mistral")
    )
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "rms_norm_eps": model.norm_eps,
        "max_position_embeddings": model.max_positions,
        "tie_word_embeddings": model.tied_embeddings,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    config |= _windows(model)
    if tempered and "layer_types" in config:
        raise WeightFileError(
            "params.json: windows that differ between layers, with llama_4_scaling, are not implemented"
        )
    if "rope_type" in rope or tempered:
        return config | {"rope_parameters": {"rope_type": "default", **rope}}
    return config | {"rope_theta": rope["rope_theta"]}


def _rope(model: MistralParams) -> dict[str, Any]:
    """Parameters of the rope, with those of an attention temperature."""
    rope: dict[str, Any] = {"rope_theta": model.rope_theta}
    context = "original_max_position_embeddings"
    if (yarn := model.yarn) is not None:
        rope |= {
            "rope_type": "yarn",
            "factor": yarn.factor,
            context: yarn.context,
            "beta_fast": yarn.beta_fast,
            "beta_slow": yarn.beta_slow,
        }
        if not yarn.apply_scale:
            rope["attention_factor"] = 1.0
    beta, length = model.temperature
    if not beta:
        return rope
    if rope.get(context, length) != length:
        raise WeightFileError(
            f"params.json: llama_4_scaling.{context} is {length} and that of yarn {rope[context]}; "
            "a config.json has one for both"
        )
    return rope | {"llama_4_scaling_beta": beta, context: length}


def _windows(model: MistralParams) -> dict[str, Any]:
    """The sliding window. Windows that differ between layers are those of Ministral 8B."""
    if not model.windows_differ:
        return {"sliding_window": model.windows[0]}
    sizes = {window for window in model.windows if window is not None}
    if len(sizes) > 1:
        raise WeightFileError(f"params.json: sliding windows of several sizes ({sorted(sizes)}) are not implemented")
    return {
        "architectures": ["MinistralForCausalLM"],
        "model_type": "ministral",
        "sliding_window": next(iter(sizes), None),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in model.windows],
    }
