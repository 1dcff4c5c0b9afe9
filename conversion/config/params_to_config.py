"""Mistral's own `params.json` as the `config.json` of the same model, so that one converter serves both formats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from conversion.config.model_sizes import (
    MOST_FACTOR,
    MOST_HEAD_DIM,
    MOST_HEADS,
    MOST_INNER_WIDTH,
    MOST_LAYERS,
    MOST_THETA,
    MOST_TOKENS,
    MOST_WIDTH,
)
from conversion.files.json_fields import LARGEST, JSONFields
from conversion.weights.tensor_source import WeightFileError

_UNIMPLEMENTED = ("moe", "quantization", "q_lora_rank", "kv_lora_rank", "lora")


def params_to_config(params: Mapping[str, Any]) -> dict[str, Any]:
    """The `config.json` for a parsed `params.json`. It describes the model that `MistralConfig.from_mistral` reads from
    it.

    Raises:
      WeightFileError: a feature that is not implemented, or a size that is missing or out of range.
    """
    for key in _UNIMPLEMENTED:
        if params.get(key):
            raise WeightFileError(f"params.json: {key!r} is not implemented")
    fields = JSONFields(params, error=WeightFileError, source="params.json")
    heads, layers = fields.whole("n_heads", most=MOST_HEADS), fields.whole("n_layers", most=MOST_LAYERS)
    dim = fields.whole("dim", most=MOST_WIDTH)
    rope, tempered = _rope(fields)
    # Only this class's queries have a temperature.
    architecture, model_type = (
        ("Ministral3ForCausalLM", "ministral3") if tempered else ("MistralForCausalLM", "mistral")
    )
    config: dict[str, Any] = {
        "architectures": [architecture],
        "model_type": model_type,
        "vocab_size": fields.whole("vocab_size", most=MOST_TOKENS),
        "hidden_size": dim,
        "intermediate_size": fields.whole("hidden_dim", most=MOST_INNER_WIDTH),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": fields.whole("n_kv_heads", heads, most=MOST_HEADS),
        "head_dim": fields.whole("head_dim", dim // heads, most=MOST_HEAD_DIM),
        "rms_norm_eps": fields.number("norm_eps", 1e-5, above=0, most=1),
        "max_position_embeddings": _max_positions(fields, rope),
        "tie_word_embeddings": fields.flag("tied_embeddings", False),
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "bfloat16",
    }
    config |= _windows(fields, layers)
    if tempered and "layer_types" in config:
        raise WeightFileError(
            "params.json: windows that differ between layers, with llama_4_scaling, are not implemented"
        )
    if "rope_type" in rope or tempered:
        return config | {"rope_parameters": {"rope_type": "default", **rope}}
    return config | {"rope_theta": rope["rope_theta"]}


def _rope(fields: JSONFields) -> tuple[dict[str, Any], bool]:
    """Parameters of the rope, and whether they have an attention temperature."""
    # As mistral-inference infers it: the models without a window have the larger one.
    theta = 1e6 if fields.values.get("sliding_window") is None else 1e4
    rope: dict[str, Any] = {"rope_theta": fields.number("rope_theta", theta, above=1, most=MOST_THETA)}
    context = "original_max_position_embeddings"
    yarn = fields.object("yarn")
    if yarn is not None and yarn.values:
        rope |= {
            "rope_type": "yarn",
            "factor": yarn.number("factor", above=0, most=MOST_FACTOR),
            context: yarn.whole(context),
            "beta_fast": yarn.number("beta", 32.0, above=0, most=MOST_FACTOR),
            "beta_slow": yarn.number("alpha", 1.0, above=0, most=MOST_FACTOR),
        }
        if not yarn.flag("apply_scale", True):
            rope["attention_factor"] = 1.0
    tempered = fields.object("llama_4_scaling")
    beta = 0.0 if tempered is None else tempered.number("beta", 0.0, above=-1, most=1e3)
    if tempered is None or not beta:
        return rope, False
    length = tempered.whole(context)
    if rope.get(context, length) != length:
        raise WeightFileError(
            f"params.json: llama_4_scaling.{context} is {length} and that of yarn {rope[context]}; "
            "a config.json has one for both"
        )
    return rope | {"llama_4_scaling_beta": beta, context: length}, True


def _max_positions(fields: JSONFields, rope: Mapping[str, Any]) -> int:
    for key in ("max_position_embeddings", "max_seq_len", "model_max_length"):
        if key in fields:
            return fields.whole(key)
    if rope.get("rope_type") != "yarn":
        return 32768
    stretched = rope["original_max_position_embeddings"] * rope["factor"]
    if not 1 <= stretched <= LARGEST:
        raise WeightFileError(
            f"params.json: yarn stretches the context to {stretched:g} tokens; expected at most {LARGEST}"
        )
    return int(stretched)


def _windows(fields: JSONFields, layers: int) -> dict[str, Any]:
    """The sliding window. Windows that differ between layers are those of Ministral 8B."""
    value = fields.values.get("sliding_window")
    if not isinstance(value, list):
        return {"sliding_window": None if value is None else fields.whole("sliding_window")}
    pattern = cast("list[Any]", value)
    if not pattern or not all(item is None or (type(item) is int and 1 <= item <= LARGEST) for item in pattern):
        raise fields.wrong("sliding_window", "a positive whole number, null, or a list of such")
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
