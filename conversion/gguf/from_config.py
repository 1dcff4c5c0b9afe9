"""The metadata of a GGUF file for a `config.json`: what llama.cpp's converter would write of the model's shape and rope.

Where it differs from that converter, and why:

- Keys whose absence means one thing in transformers and another in llama.cpp are always written (`attention.head_count_kv`,
  `attention.key_length`, the norm's epsilon, …).
- `attention.sliding_window` is written, 0 for none, and `attention.sliding_window_pattern` where layers differ. llama.cpp reads
  neither for these architectures; without it readers have to guess (see `conversion.gguf.config`).
- Architecture `llama` of llama.cpp takes YaRN's own parameters for their defaults. A model with others becomes `mistral3`, which is
  computed alike and for which they are read; an attention factor is written in both forms, of which llama.cpp reads one.

What a file cannot say is refused. Source: `conversion/base.py`, `llama.py` and `mistral3.py` of llama.cpp's converter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from conversion.class_defaults import CLASS_DEFAULTS, MODEL_TYPES
from conversion.gguf.file import GGUFError
from conversion.gguf.rope import yarn_attention_factor
from conversion.rope_factors import Llama3Scaling, llama3_factors

Value = int | float | str | list[bool]
"""As GGUF types: uint32, float32, string, array of booleans."""


def gguf_architecture(config: Mapping[str, Any]) -> str:
    """`general.architecture` of a model: "llama" or "mistral3".

    Raises:
      GGUFError: see `gguf_metadata`.
    """
    return _architecture(_text_config(config))


def gguf_metadata(config: Mapping[str, Any]) -> dict[str, Value]:
    """The keys under the architecture's name. The writer adds `general.*` and the tokenizer's, and the tensor of `rope_factors`.

    Args:
      config: a parsed `config.json` that `MistralConfig.from_hf` accepts; of a wrapper, the text model's part is taken.
    Raises:
      GGUFError: the configuration lacks a size, or asks for what GGUF files of these architectures cannot say.
    """
    text = _text_config(config)
    architecture = _architecture(text)
    layers, heads = _size(text, "num_hidden_layers"), _size(text, "num_attention_heads")
    head_dim = _head_dim(text)
    metadata: dict[str, Value] = {
        "block_count": layers,
        "context_length": _size(text, "max_position_embeddings"),
        "embedding_length": _size(text, "hidden_size"),
        "feed_forward_length": _size(text, "intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": _size(text, "num_key_value_heads") if text.get("num_key_value_heads") else heads,
        **_rope_metadata(text, architecture),
        "attention.layer_norm_rms_epsilon": float(text["rms_norm_eps"]),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "vocab_size": _size(text, "vocab_size"),
        "rope.dimension_count": head_dim,
        **_window_metadata(text, layers),
    }
    return {f"{architecture}.{key}": value for key, value in metadata.items()}


def rope_factors(config: Mapping[str, Any]) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    """The tensor `rope_freqs.weight` [H/2] of a model whose rope is written as one; None for others.

    Raises:
      GGUFError: see `gguf_metadata`.
    """
    text = _text_config(config)
    parameters, kind = _rope(text)
    listed = parameters.get("long_factor") if kind == "longrope" else parameters.get("frequency_factors")
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
    return llama3_factors(scaling, theta=_theta(text), head_dim=_head_dim(text)).astype(np.float32)


def _text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The text model's part, with the defaults of its class, and `model_type` set."""
    architecture = (config.get("architectures") or [None])[0]
    text = config.get("text_config") or config
    model_type = (
        text.get("model_type") if text.get("model_type") in CLASS_DEFAULTS else MODEL_TYPES.get(architecture or "")
    )
    if architecture not in MODEL_TYPES or model_type is None:
        raise GGUFError(
            f"architecture {architecture!r} has no GGUF form here; those that have are {', '.join(MODEL_TYPES)}"
        )
    wrapped = architecture == "Mistral3ForConditionalGeneration"
    return {**CLASS_DEFAULTS[model_type], **text, "model_type": model_type, "wrapped": wrapped}


def _architecture(text: Mapping[str, Any]) -> str:
    parameters, kind = _rope(text)
    if text["wrapped"] or text["model_type"] == "ministral3" or parameters.get("llama_4_scaling_beta"):
        return "mistral3"
    if kind != "yarn":
        return "llama"
    plain = _yarn_attention(parameters) == yarn_attention_factor(_number(parameters, "factor"), 0.0)
    return "llama" if plain and (_beta(parameters, "fast"), _beta(parameters, "slow")) == (32.0, 1.0) else "mistral3"


def _rope(text: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """The parameters of the rope in either form of configuration, and its kind."""
    parameters = dict(text.get("rope_scaling") or text.get("rope_parameters") or {})
    return parameters, parameters.get("rope_type") or parameters.get("type") or "default"


def _rope_metadata(text: Mapping[str, Any], architecture: str) -> dict[str, Value]:
    parameters, kind = _rope(text)
    metadata: dict[str, Value] = {}
    if kind == "linear":
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": _number(parameters, "factor")}
    elif kind == "yarn":
        metadata |= _yarn_metadata(text, parameters, architecture)
    elif kind == "longrope":
        if parameters.get("long_factor") != parameters.get("short_factor") or parameters.get("attention_factor") != 1:
            raise GGUFError("longrope has no GGUF form here unless its factors are the same for all lengths of text")
    elif kind not in ("default", "llama3"):
        raise GGUFError(f"rope of type {kind!r} has no GGUF form here; default, linear, llama3 and yarn have")
    metadata["rope.freq_base"] = _theta(text)
    beta = parameters.get("llama_4_scaling_beta")
    if beta is not None and architecture == "mistral3":
        if beta and kind not in ("default", "yarn"):
            raise GGUFError(f"attention temperature with a rope of type {kind!r} has no GGUF form")
        if beta:
            metadata["rope.scaling.original_context_length"] = _original_context(text, parameters)
        metadata["attention.temperature_scale"] = float(beta)
    return metadata


def _yarn_metadata(text: Mapping[str, Any], parameters: Mapping[str, Any], architecture: str) -> dict[str, Value]:
    if not parameters.get("truncate", True):
        raise GGUFError("yarn with truncate = false has no GGUF form: llama.cpp always rounds the borders of the ramp")
    factor = _number(parameters, "factor")
    metadata: dict[str, Value] = {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": _original_context(text, parameters),
        "rope.scaling.yarn_beta_fast": _beta(parameters, "fast"),
        "rope.scaling.yarn_beta_slow": _beta(parameters, "slow"),
    }
    if parameters.get("attention_factor") is not None:
        metadata["rope.scaling.yarn_attn_factor"] = float(parameters["attention_factor"])
    if architecture == "mistral3":
        metadata["rope.scaling.yarn_log_multiplier"] = _log_multiplier(parameters, factor)
    return metadata


def _beta(parameters: Mapping[str, Any], which: str) -> float:
    key = f"beta_{which}"
    return _number(parameters, key) if parameters.get(key) else {"fast": 32.0, "slow": 1.0}[which]


def _yarn_attention(parameters: Mapping[str, Any]) -> float:
    """The attention factor that transformers computes."""
    if parameters.get("attention_factor") is not None:
        return float(parameters["attention_factor"])
    factor = _number(parameters, "factor")
    own, all_dim = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if not own or not all_dim:
        return yarn_attention_factor(factor, 0.0)
    # The ratio of two: with a multiplier of m it is (grown + 1) / (grown * m + 1).
    return yarn_attention_factor(factor, float(all_dim)) / yarn_attention_factor(factor, float(own))


def _log_multiplier(parameters: Mapping[str, Any], factor: float) -> float:
    """The multiplier with which llama.cpp comes to the attention factor of transformers."""
    wanted = _yarn_attention(parameters)
    known = float(parameters.get("mscale_all_dim") or 0.0)
    for multiplier in (known, 0.0):
        if math.isclose(yarn_attention_factor(factor, multiplier), wanted, rel_tol=1e-9):
            return multiplier
    grown = 0.1 * math.log(factor) if factor > 1 else 0.0
    if grown == 0 or wanted <= 0:
        raise GGUFError(f"yarn with factor {factor} and attention factor {wanted} has no GGUF form")
    return ((grown + 1) / wanted - 1) / grown


def _window_metadata(text: Mapping[str, Any], layers: int) -> dict[str, Value]:
    """As in the reference implementation: Llama has no window, and only `ministral` has layers of several types."""
    window = text.get("sliding_window")
    if text["model_type"] == "llama" or text.get("use_sliding_window") is False or window is None:
        return {"attention.sliding_window": 0}
    types: list[str] = list(text.get("layer_types") or []) if text["model_type"] == "ministral" else []
    sliding = [kind == "sliding_attention" for kind in types]
    if types and len(types) != layers:
        raise GGUFError(f"layer_types has {len(types)} entries for {layers} layers")
    if types and not any(sliding):
        return {"attention.sliding_window": 0}
    pattern: dict[str, Value] = {"attention.sliding_window_pattern": sliding} if types and not all(sliding) else {}
    return {"attention.sliding_window": _size(text, "sliding_window"), **pattern}


def _head_dim(text: Mapping[str, Any]) -> int:
    if text.get("head_dim") is not None:
        return _size(text, "head_dim")
    return _size(text, "hidden_size") // _size(text, "num_attention_heads")


def _theta(text: Mapping[str, Any]) -> float:
    parameters, _ = _rope(text)
    given = parameters if parameters.get("rope_theta") else text
    return _number(given, "rope_theta") if given.get("rope_theta") else 10000.0


def _original_context(text: Mapping[str, Any], parameters: Mapping[str, Any]) -> int:
    key = "original_max_position_embeddings"
    return int(text.get(key) or parameters.get(key) or _size(text, "max_position_embeddings"))


def _size(text: Mapping[str, Any], key: str) -> int:
    value = text.get(key)
    if type(value) is not int or not 1 <= value < 2**32:
        raise GGUFError(f"{key} of the configuration is {value!r}; expected a positive integer")
    return value


def _number(parameters: Mapping[str, Any], key: str) -> float:
    value: Any = parameters.get(key)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise GGUFError(f"rope parameter {key} of the configuration is {value!r}; expected a positive number")
    return float(value)
