"""Reads the fields of a `MistralConfig` from a parsed `config.json`.

Which keys are used depends on `model_type`, as in the reference implementation (transformers): only Llama's projections
may have biases, only Ministral's layers may have different windows, only Ministral 3's queries have a temperature, and
no class reads `use_sliding_window`. Keys that only another class uses are ignored, as in transformers, and logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from conversion.config.class_defaults import CLASS_DEFAULTS, MODEL_TYPES
from conversion.config.model_sizes import (
    MOST_HEAD_DIM,
    MOST_HEADS,
    MOST_INNER_WIDTH,
    MOST_LAYERS,
    MOST_TEMPERATURE,
    MOST_TOKENS,
    MOST_WIDTH,
)
from conversion.files.json_fields import JSONFields, shown
from mistral_jax.model.config_error import ConfigError
from mistral_jax.model.rope_config import hf_rope, original_context

_log = logging.getLogger(__name__)

SUPPORTED_ARCHITECTURES = (
    "MistralForCausalLM",
    "LlamaForCausalLM",
    "MinistralForCausalLM",
    "Ministral3ForCausalLM",
    "Mistral3ForConditionalGeneration",
)

# Keys that the reference implementation of these architectures uses and we do not implement: refused unless the value
# is None or listed here.
_UNIMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (),
    "partial_rotary_factor": (1, 1.0),
    "num_local_experts": (0, 1),
    "num_experts": (0, 1),
    "moe": (),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
    "qk_norm": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "rope_interleaved": (False,),
}


def hf_fields(outer: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of the `MistralConfig` that a configuration describes.

    Args:
      outer: the JSON object; for `Mistral3ForConditionalGeneration` its `text_config` is used.
    Raises:
      ConfigError: see `MistralConfig.from_hf`.
    """
    wrapper = JSONFields(outer, error=ConfigError)
    architecture, model_type, raw = _text_model(wrapper)
    for key, harmless in _UNIMPLEMENTED.items():
        value = raw.values.get(key)
        if value is not None and value not in harmless:
            raise ConfigError(f"{key} = {shown(value)} is not implemented")
    if (activation := raw.text("hidden_act", "silu")) not in ("silu", "swish"):
        raise ConfigError(f"hidden_act {shown(activation)} is not implemented; the family uses silu")

    num_layers = raw.whole("num_hidden_layers", most=MOST_LAYERS)
    num_heads = raw.whole("num_attention_heads", most=MOST_HEADS)
    hidden_size = raw.whole("hidden_size", most=MOST_WIDTH)
    if "head_dim" in raw:
        head_dim = raw.whole("head_dim", most=MOST_HEAD_DIM)
    elif hidden_size % num_heads:
        raise ConfigError(f"hidden_size {hidden_size} is not a multiple of {num_heads} heads and head_dim is not given")
    else:
        head_dim = hidden_size // num_heads
    max_positions = raw.whole("max_position_embeddings")
    is_ministral3, is_llama = model_type == "ministral3", model_type == "llama"
    if is_ministral3 and not (raw.values.get("rope_scaling") or raw.values.get("rope_parameters")):
        raise ConfigError("the configuration lacks 'rope_parameters', which Ministral 3 needs")
    rope, parameters = hf_rope(raw, max_positions)
    beta, length = _temperature(raw, parameters, rope.original_max_position_embeddings) if is_ministral3 else (0.0, 0)
    _log_ignored(raw, parameters, model_type)
    return {
        "architecture": architecture,
        "vocab_size": raw.whole("vocab_size", most=MOST_TOKENS),
        "hidden_size": hidden_size,
        "intermediate_size": raw.whole("intermediate_size", most=MOST_INNER_WIDTH),
        "num_layers": num_layers,
        "num_heads": num_heads,
        "num_kv_heads": raw.whole("num_key_value_heads", num_heads, most=MOST_HEADS),
        "head_dim": head_dim,
        "rms_norm_eps": raw.number("rms_norm_eps", above=0, most=1),
        "max_position_embeddings": max_positions,
        "rope": rope,
        "layer_windows": _windows(raw, model_type, num_layers),
        "attention_temperature_beta": beta,
        "attention_temperature_length": length,
        # Either may set it; `load_weights` overrides it if the files hold another output matrix.
        "tie_word_embeddings": raw.flag("tie_word_embeddings", False) or wrapper.flag("tie_word_embeddings", False),
        "attention_bias": is_llama and raw.flag("attention_bias", False),
        "mlp_bias": is_llama and raw.flag("mlp_bias", False),
        "bos_token_id": next(iter(_token_ids(raw, wrapper, "bos_token_id", 1)), None),
        "eos_token_ids": _token_ids(raw, wrapper, "eos_token_id", 2),
        "dtype": next(
            (t for fields in (raw, wrapper) for key in ("dtype", "torch_dtype") if (t := fields.text(key))), None
        ),
    }


def _text_model(wrapper: JSONFields) -> tuple[str, str, JSONFields]:
    """Architecture, model type, and the text model's part of the configuration with the defaults of its class."""
    architectures = wrapper.list("architectures") or [None]
    architecture = architectures[0]
    if architecture not in SUPPORTED_ARCHITECTURES:
        named = shown(architecture) if architecture else f"none (model_type {shown(wrapper.values.get('model_type'))})"
        raise ConfigError(
            f"architecture {named} is not implemented; implemented are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    inner = wrapper.object("text_config")
    text = dict((inner or wrapper).values)
    model_type = (inner or wrapper).text("model_type") or MODEL_TYPES[architecture]
    if model_type not in CLASS_DEFAULTS:
        part = "a text model" if inner is not None else "a model"
        raise ConfigError(f"{architecture} with {part} of type {shown(model_type)} is not implemented")
    if inner is not None and "quantization_config" in wrapper.values:
        text.setdefault("quantization_config", wrapper.values["quantization_config"])
    return architecture, model_type, JSONFields({**CLASS_DEFAULTS[model_type], **text}, error=ConfigError)


def _token_ids(raw: JSONFields, wrapper: JSONFields, key: str, default: int) -> tuple[int, ...]:
    """Token ids from the text model's part, else the wrapper, else the default; null means none."""
    for fields in (raw, wrapper):
        if key in fields.values:
            return fields.token_ids(key)
    return (default,)


def _windows(raw: JSONFields, model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """Sliding window of each layer."""
    if model_type == "llama":
        return (None,) * num_layers
    window = raw.whole("sliding_window") if "sliding_window" in raw else None
    layer_types = raw.texts("layer_types") if model_type == "ministral" else None
    if layer_types is None:
        return (window,) * num_layers
    unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ConfigError(
            f"layer type {shown(unknown[0])} is not implemented; full_attention and sliding_attention are"
        )
    if window is None and "sliding_attention" in layer_types:
        raise ConfigError("layer_types names sliding_attention but sliding_window is null")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _temperature(raw: JSONFields, parameters: JSONFields, of_rope: int) -> tuple[float, int]:
    """Beta and length of Ministral 3's attention temperature. The reference reads both from the rope parameters, where
    its yarn and llama3 keep the pre-training context."""
    beta = parameters.number("llama_4_scaling_beta", above=-1, most=MOST_TEMPERATURE)
    if not beta:
        return 0.0, 0
    if of_rope:
        return beta, of_rope
    if "original_max_position_embeddings" not in parameters:
        raise ConfigError(
            "attention temperature (llama_4_scaling_beta) needs original_max_position_embeddings next to it"
        )
    return beta, original_context(parameters, parameters)


def _log_ignored(raw: JSONFields, parameters: JSONFields, model_type: str) -> None:
    """Log the keys that only another class uses."""
    ignored = {
        "use_sliding_window": raw.values.get("use_sliding_window") is False
        and raw.values.get("sliding_window") is not None,
        "llama_4_scaling_beta": bool(parameters.values.get("llama_4_scaling_beta")) and model_type != "ministral3",
        "layer_types": bool(raw.values.get("layer_types")) and model_type in ("mistral", "ministral3"),
        "attention_bias": raw.values.get("attention_bias") is True and model_type != "llama",
        "mlp_bias": raw.values.get("mlp_bias") is True and model_type != "llama",
    }
    if named := ", ".join(key for key, is_set in ignored.items() if is_set):
        _log.warning("models of type %s do not know %s (as in transformers): ignored", model_type, named)
