"""The rope of a GGUF file, in the form of a `config.json`.

Facts that the metadata alone does not give (from llama.cpp's loader, graph and converter):

- Without `rope.scaling.type`, a factor (`rope.scaling.factor`, in old files `rope.scale_linear`) means linear scaling.
  A factor of 0 is none.
- Llama 3's scaling is not metadata but a tensor, `rope_freqs.weight` float32 [H/2], that divides the frequencies.
- YaRN's attention factor is m(1) / m(yarn_log_multiplier), with m(x) = 0.1 x log(factor) + 1: `mscale` is taken for 1,
  and `yarn_log_multiplier` is `mscale_all_dim`. `yarn_attn_factor` is the `attention_factor` of the configuration,
  which goes before (llama.cpp writes it and does not read it back). `attn_factor` multiplies what results.
- Queries of Ministral 3 grow by `attention.temperature_scale` with each `rope.scaling.original_context_length` of
  positions.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from conversion.config.model_sizes import MOST_TEMPERATURE
from conversion.config.rope_factors import Factors, find_llama3
from conversion.gguf.container.fields import Fields
from conversion.gguf.container.file import GGUFError, GGUFFile

FACTORS_TENSOR = "rope_freqs.weight"
_LEAST, _MOST = 1e-6, 1e6
"""Limit of factors: far beyond any model in use, and small enough that nothing overflows in float32."""


def rope_parameters(gguf: GGUFFile, fields: Fields, *, theta: float, head_dim: int, context: int) -> dict[str, Any]:
    """The `rope_parameters` of a `config.json`, without `rope_theta`; {} for plain rope.

    A llama3 rope has the factors of the file beside its parameters, as `frequency_factors` (not a key of transformers):
    they are what llama.cpp uses. Factors that no llama3 rope gives become a longrope with two equal sets of factors.

    Raises:
      GGUFError: a kind of scaling that is not implemented, or a value out of range.
    """
    kind, factor = _kind_and_factor(fields)
    factors = _frequency_factors(gguf, head_dim)
    if kind == "yarn":
        if factors is not None:
            raise GGUFError(f"YaRN together with the factors of {FACTORS_TENSOR} is not implemented")
        parameters = _yarn(fields, factor, context)
    elif fields.has("rope.scaling.attn_factor", 0, 1):
        raise fields.unexpected("rope.scaling.attn_factor", fields.get("rope.scaling.attn_factor"), "1 without YaRN")
    elif factors is not None:
        parameters = _by_factors(fields, factors * factor, theta, context)
    else:
        parameters = {"rope_type": "linear", "factor": factor} if factor != 1 else {}
    return {**parameters, **_temperature(fields, parameters, context)}


def _factor(fields: Fields, key: str, default: float | None = None) -> float:
    return fields.real(key, default, above=_LEAST, most=_MOST)


def _kind_and_factor(fields: Fields) -> tuple[str, float]:
    factor = 1.0
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if fields.get(key) is not None:
            factor = _factor(fields, key) if fields.has(key, 0) else 1.0
            break
    kind = fields.text("rope.scaling.type", "linear")
    if kind == "none":
        return "linear", 1.0
    if kind not in ("linear", "yarn"):
        raise GGUFError(
            f"{fields.full('rope.scaling.type')} is {kind!r}, which is not implemented; none, linear and yarn are"
        )
    return kind, factor


def _frequency_factors(gguf: GGUFFile, head_dim: int) -> Factors | None:
    """The factors [H/2] of the file; None where it has none, or all are 1."""
    info = gguf.tensors.get(FACTORS_TENSOR)
    if info is None:
        return None
    if info.shape != (head_dim // 2,) or info.type.name != "F32":
        raise GGUFError(
            f"tensor {FACTORS_TENSOR} is {info.type.name} {list(info.shape)}; expected F32 {[head_dim // 2]}, "
            "a factor for each pair of a head's dimensions"
        )
    raw = np.empty(info.nbytes, np.uint8)
    gguf.read_raw(FACTORS_TENSOR, raw)
    factors = raw.view("<f4").astype(np.float64)
    if not np.all((factors >= _LEAST) & (factors <= _MOST)):
        raise GGUFError(f"tensor {FACTORS_TENSOR} holds numbers that are no factors (zero, negative or infinite)")
    return None if np.all(factors == 1) else factors


def _by_factors(fields: Fields, factors: Factors, theta: float, context: int) -> dict[str, Any]:
    key = "rope.scaling.original_context_length"
    contexts = [fields.natural(key)] if fields.get(key) is not None else []
    found = find_llama3(factors, theta=theta, contexts=contexts)
    listed: list[float] = factors.tolist()
    if found is None:
        return {
            "rope_type": "longrope",
            "short_factor": listed,
            "long_factor": listed,
            "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        }
    return {
        "rope_type": "llama3",
        "factor": found.factor,
        "low_freq_factor": found.low_freq_factor,
        "high_freq_factor": found.high_freq_factor,
        "original_max_position_embeddings": found.original_context,
        "frequency_factors": listed,
    }


def _yarn(fields: Fields, factor: float, context: int) -> dict[str, Any]:
    if fields.has("rope.scaling.yarn_ext_factor", 1, -1):  # -1: not set
        extrapolation = fields.get("rope.scaling.yarn_ext_factor")
        raise fields.unexpected("rope.scaling.yarn_ext_factor", extrapolation, "1: others are not implemented")
    parameters: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": factor,
        "original_max_position_embeddings": fields.natural("rope.scaling.original_context_length", context),
        "beta_fast": _factor(fields, "rope.scaling.yarn_beta_fast", 32.0),
        "beta_slow": _factor(fields, "rope.scaling.yarn_beta_slow", 1.0),
    }
    multiplier = 0.0
    if fields.get("rope.scaling.yarn_log_multiplier") is not None:
        multiplier = fields.real("rope.scaling.yarn_log_multiplier", above=-_MOST, most=_MOST)
        if 0.1 * math.log(max(factor, 1.0)) * multiplier <= -1:
            raise fields.unexpected("rope.scaling.yarn_log_multiplier", multiplier, "a number of at least 0")
        parameters |= {"mscale": 1.0, "mscale_all_dim": multiplier}
    attention = None
    if fields.get("rope.scaling.yarn_attn_factor") is not None:
        attention = _factor(fields, "rope.scaling.yarn_attn_factor")
    if fields.has("rope.scaling.attn_factor", 0, 1):
        extra = _factor(fields, "rope.scaling.attn_factor")
        attention = extra * (attention or yarn_attention_factor(factor, multiplier))
    if attention is not None:
        parameters["attention_factor"] = attention
    return parameters


def yarn_attention_factor(factor: float, multiplier: float) -> float:
    """The factor by which llama.cpp multiplies cosines and sines.

    Args:
      factor: scaling of the context.
      multiplier: `yarn_log_multiplier`, 0 for none.
    """
    grown = 0.1 * math.log(factor) if factor > 1 else 0.0
    return (grown + 1) / (grown * multiplier + 1)


def _temperature(fields: Fields, parameters: dict[str, Any], context: int) -> dict[str, Any]:
    key = "attention.temperature_scale"
    if fields.get(key) is None:
        return {}
    scale = fields.real(key, above=_LEAST, most=MOST_TEMPERATURE) if fields.has(key, 0) else 0.0
    original = fields.natural("rope.scaling.original_context_length", context)
    if scale and fields.natural("attention.temperature_length", original) != original:
        raise fields.unexpected(
            "attention.temperature_length",
            fields.get("attention.temperature_length"),
            f"the original context {original}",
        )
    known = parameters.get("original_max_position_embeddings", original)
    if scale and known != original:
        raise GGUFError(f"{fields.full(key)} together with a {parameters['rope_type']} rope is not implemented")
    kind = parameters.get("rope_type", "default")
    return {"rope_type": kind, "original_max_position_embeddings": known, "llama_4_scaling_beta": scale}
