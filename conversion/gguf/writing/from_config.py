"""The metadata of a GGUF file for a `config.json`: the model's shape and rope, as llama.cpp's converter would write
them.

Differences from that converter, with reasons:

- Keys whose absence means one thing in transformers and another in llama.cpp are always written
  (`attention.head_count_kv`, `attention.key_length`, the norm's epsilon, …).
- `attention.sliding_window` is written, 0 for none, and `attention.sliding_window_pattern` where layers differ.
  llama.cpp reads neither for these architectures; without it readers have to guess (see `conversion.gguf.config`).
- For architecture `llama`, llama.cpp assumes the defaults of YaRN's own parameters. A model with others becomes
  `mistral3`, which is computed in the same way and for which they are read; an attention factor is written in both
  forms, of which llama.cpp reads one.

What a file cannot express is refused. Source: `conversion/base.py`, `llama.py` and `mistral3.py` of llama.cpp's
converter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from conversion.config.class_defaults import CLASS_DEFAULTS, MODEL_TYPES
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
from conversion.config.rope_factors import Llama3Scaling, llama3_factors
from conversion.files.json_fields import JSONFields, shown
from conversion.gguf.container.file import GGUFError
from conversion.gguf.rope import yarn_attention_factor

Value = int | float | str | list[bool]
"""As GGUF types: uint32, float32, string, array of booleans."""


def gguf_architecture(config: Mapping[str, Any]) -> str:
    """`general.architecture` of a model: "llama" or "mistral3".

    Raises:
      GGUFError: see `gguf_metadata`.
    """
    return _architecture(_text_config(config))


def gguf_metadata(config: Mapping[str, Any]) -> dict[str, Value]:
    """The keys under the architecture's name. The writer adds `general.*`, the tokenizer's keys, and the tensor of
    `rope_factors`.

    Args:
      config: a parsed `config.json` that `MistralConfig.from_hf` accepts; of a wrapper, the text model's part is taken.
    Raises:
      GGUFError: the configuration lacks a size, or needs something that GGUF files of these architectures cannot
        express.
    """
    text = _text_config(config)
    architecture = _architecture(text)
    layers, heads = (
        text.whole("num_hidden_layers", most=MOST_LAYERS),
        text.whole("num_attention_heads", most=MOST_HEADS),
    )
    head_dim = _head_dim(text)
    metadata: dict[str, Value] = {
        "block_count": layers,
        "context_length": text.whole("max_position_embeddings"),
        "embedding_length": text.whole("hidden_size", most=MOST_WIDTH),
        "feed_forward_length": text.whole("intermediate_size", most=MOST_INNER_WIDTH),
        "attention.head_count": heads,
        "attention.head_count_kv": text.whole("num_key_value_heads", heads, most=MOST_HEADS),
        **_rope_metadata(text, architecture),
        "attention.layer_norm_rms_epsilon": text.number("rms_norm_eps", above=0, most=1),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "vocab_size": text.whole("vocab_size", most=MOST_TOKENS),
        "rope.dimension_count": head_dim,
        **_window_metadata(text, layers),
    }
    return {f"{architecture}.{key}": value for key, value in metadata.items()}


def rope_factors(config: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The tensor `rope_freqs.weight` [H/2] of a model whose rope is written as a tensor; None for others.

    Raises:
      GGUFError: see `gguf_metadata`.
    """
    text = _text_config(config)
    parameters, kind = _rope(text)
    listed = parameters.numbers("long_factor" if kind == "longrope" else "frequency_factors", above=0)
    if listed is not None:
        return np.array(listed, np.float32)
    if kind != "llama3":
        return None
    scaling = Llama3Scaling(
        factor=_number(parameters, "factor"),
        low_freq_factor=_number(parameters, "low_freq_factor"),
        high_freq_factor=_number(parameters, "high_freq_factor"),
        original_context=_original_context(text, parameters),
    )
    if scaling.high_freq_factor <= scaling.low_freq_factor:
        raise GGUFError("llama3 rope: high_freq_factor must be greater than low_freq_factor")
    return llama3_factors(scaling, theta=_theta(text), head_dim=_head_dim(text)).astype(np.float32)


def has_biases(config: Mapping[str, Any]) -> bool:
    """Whether the model's class supports biases of its projections: of the classes with a GGUF form only Llama's does.

    Raises:
      GGUFError: the configuration describes no model of these classes.
    """
    return _model_type(_text_config(config)) == "llama"


def _text_config(config: Mapping[str, Any]) -> JSONFields:
    """The text model's part, with the defaults of its class, and `model_type` set."""
    whole = JSONFields(config, error=GGUFError)
    architecture = next(iter(whole.list("architectures") or ()), None)
    inner = whole.object("text_config")
    text = (inner or whole).values
    known = MODEL_TYPES.get(architecture) if isinstance(architecture, str) else None
    given = text.get("model_type")
    model_type = given if isinstance(given, str) and given in CLASS_DEFAULTS else known
    if known is None or model_type is None:
        raise GGUFError(
            f"architecture {shown(architecture)} has no GGUF form here; those that have are {', '.join(MODEL_TYPES)}"
        )
    wrapped = architecture == "Mistral3ForConditionalGeneration"
    return JSONFields(
        {**CLASS_DEFAULTS[model_type], **text, "model_type": model_type, "wrapped": wrapped}, error=GGUFError
    )


def _model_type(text: JSONFields) -> str:
    return str(text.values["model_type"])


def _architecture(text: JSONFields) -> str:
    parameters, kind = _rope(text)
    if text.values["wrapped"] or _model_type(text) == "ministral3":
        return "mistral3"
    if kind != "yarn":
        return "llama"
    plain = _yarn_attention(parameters) == yarn_attention_factor(_number(parameters, "factor"), 0.0)
    return "llama" if plain and (_beta(parameters, "fast"), _beta(parameters, "slow")) == (32.0, 1.0) else "mistral3"


def _rope(text: JSONFields) -> tuple[JSONFields, str]:
    """The parameters of the rope in either form of configuration, and its kind."""
    parameters = text.object("rope_scaling")
    if parameters is None or not parameters.values:
        parameters = text.object("rope_parameters") or JSONFields({}, error=GGUFError)
    return parameters, parameters.text("rope_type") or parameters.text("type") or "default"


def _rope_metadata(text: JSONFields, architecture: str) -> dict[str, Value]:
    parameters, kind = _rope(text)
    metadata: dict[str, Value] = {}
    if kind == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": _number(parameters, "factor")}
    elif kind == "yarn":
        metadata |= _yarn_metadata(text, parameters, architecture)
    elif kind == "longrope":
        same = parameters.values.get("long_factor") == parameters.values.get("short_factor")
        if not same or parameters.values.get("attention_factor") != 1:
            raise GGUFError("longrope has no GGUF form here unless its factors are the same for all lengths of text")
    elif kind not in ("default", "llama3"):
        raise GGUFError(f"rope of type {shown(kind)} has no GGUF form here; default, linear, llama3 and yarn have")
    metadata["rope.freq_base"] = _theta(text)
    # Other classes do not know this key.
    if _model_type(text) == "ministral3" and "llama_4_scaling_beta" in parameters:
        beta = parameters.number("llama_4_scaling_beta", above=-1, most=1e3)
        if beta and kind not in ("default", "yarn"):
            raise GGUFError(f"attention temperature with a rope of type {kind!r} has no GGUF form")
        if beta:
            metadata["rope.scaling.original_context_length"] = _original_context(text, parameters)
        metadata["attention.temperature_scale"] = beta
    return metadata


def _yarn_metadata(text: JSONFields, parameters: JSONFields, architecture: str) -> dict[str, Value]:
    if not parameters.flag("truncate", True):
        raise GGUFError("yarn with truncate = false has no GGUF form: llama.cpp always rounds the borders of the ramp")
    factor = _number(parameters, "factor")
    metadata: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": _original_context(text, parameters),
        "rope.scaling.yarn_beta_fast": _beta(parameters, "fast"),
        "rope.scaling.yarn_beta_slow": _beta(parameters, "slow"),
    }
    if "attention_factor" in parameters:
        metadata["rope.scaling.yarn_attn_factor"] = _number(parameters, "attention_factor")
    if architecture == "mistral3":
        metadata["rope.scaling.yarn_log_multiplier"] = _log_multiplier(parameters, factor)
    return metadata


def _beta(parameters: JSONFields, which: str) -> float:
    return _number(parameters, f"beta_{which}", {"fast": 32.0, "slow": 1.0}[which])


def _yarn_attention(parameters: JSONFields) -> float:
    """The attention factor that transformers computes."""
    if "attention_factor" in parameters:
        return _number(parameters, "attention_factor")
    factor = _number(parameters, "factor")
    own, all_dim = _multiplier(parameters, "mscale"), _multiplier(parameters, "mscale_all_dim")
    if not own or not all_dim:
        return yarn_attention_factor(factor, 0.0)
    if any(0.1 * math.log(max(factor, 1.0)) * multiplier <= -1 for multiplier in (own, all_dim)):
        raise GGUFError(f"yarn with mscale {own:g} and mscale_all_dim {all_dim:g} has no attention factor above 0")
    # The ratio of two: with a multiplier of m it is (grown + 1) / (grown * m + 1).
    return yarn_attention_factor(factor, all_dim) / yarn_attention_factor(factor, own)


def _log_multiplier(parameters: JSONFields, factor: float) -> float:
    """The multiplier with which llama.cpp computes the attention factor of transformers."""
    wanted = _yarn_attention(parameters)
    known = _multiplier(parameters, "mscale_all_dim")
    for multiplier in (known, 0.0):
        if math.isclose(yarn_attention_factor(factor, multiplier), wanted, rel_tol=1e-9):
            return multiplier
    grown = 0.1 * math.log(factor) if factor > 1 else 0.0
    if grown == 0 or wanted <= 0:
        raise GGUFError(f"yarn with factor {factor} and attention factor {wanted} has no GGUF form")
    return ((grown + 1) / wanted - 1) / grown


def _window_metadata(text: JSONFields, layers: int) -> dict[str, Value]:
    """As in the reference implementation: Llama has no window, and only `ministral` has layers of several types."""
    model_type = _model_type(text)
    if model_type == "llama" or "sliding_window" not in text:
        return {"attention.sliding_window": 0}
    window = text.whole("sliding_window")
    types = (text.texts("layer_types") or ()) if model_type == "ministral" else ()
    sliding = [kind == "sliding_attention" for kind in types]
    if types and len(types) != layers:
        raise GGUFError(f"layer_types has {len(types)} entries for {layers} layers")
    if types and not any(sliding):
        return {"attention.sliding_window": 0}
    pattern: dict[str, Value] = {"attention.sliding_window_pattern": sliding} if types and not all(sliding) else {}
    return {"attention.sliding_window": window, **pattern}


def _head_dim(text: JSONFields) -> int:
    if "head_dim" in text:
        return text.whole("head_dim", most=MOST_HEAD_DIM)
    return text.whole("hidden_size", most=MOST_WIDTH) // text.whole("num_attention_heads", most=MOST_HEADS)


def _theta(text: JSONFields) -> float:
    parameters, _ = _rope(text)
    return (parameters if "rope_theta" in parameters else text).number("rope_theta", 10000.0, above=1, most=MOST_THETA)


def _original_context(text: JSONFields, parameters: JSONFields) -> int:
    """As in the reference: a plain rope uses only its own parameters."""
    key = "original_max_position_embeddings"
    plain = (parameters.text("rope_type") or parameters.text("type") or "default") == "default"
    if key in text and not plain:
        return text.whole(key)
    return parameters.whole(key) if plain else parameters.whole(key, text.whole("max_position_embeddings"))


def _number(parameters: JSONFields, key: str, default: float | None = None) -> float:
    return parameters.number(key, default, above=0, most=MOST_FACTOR)


def _multiplier(parameters: JSONFields, key: str) -> float:
    """mscale or mscale_all_dim; 0 counts as absent."""
    return parameters.number(key, 0.0, above=-MOST_FACTOR, most=MOST_FACTOR)
