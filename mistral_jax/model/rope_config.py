"""The parameters of a rotary embedding, read from configurations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from conversion.config.model_sizes import MOST_FACTOR, MOST_THETA
from conversion.config.params_file import MistralParams
from conversion.files.json_fields import JSONFields, shown
from mistral_jax.model.config_error import ConfigError


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding, and how it is stretched beyond the trained context.

    Source: `transformers.modeling_rope_utils`; YaRN: arXiv 2309.00071.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3", "yarn", "factors"] = "default"
    """factors: `frequency_factors` alone."""
    factor: float = 1.0
    """Stretch of the context (linear, llama3, yarn)."""
    original_max_position_embeddings: int = 0
    """Context of the pre-training (llama3, yarn)."""
    low_freq_factor: float = 1.0
    """llama3 only."""
    high_freq_factor: float = 4.0
    """llama3 only."""
    beta_fast: float = 32.0
    """yarn only: rotations above which a dimension is left as it is."""
    beta_slow: float = 1.0
    """yarn only: rotations below which a dimension is interpolated in full."""
    attention_factor: float = 1.0
    """yarn only: multiplies cosines and sines. Derived from mscale and mscale_all_dim if the file does not give it."""
    truncate: bool = True
    """yarn only: round the borders of the ramp to whole dimensions."""
    frequency_factors: tuple[float, ...] = ()
    """Divisors of the H/2 frequencies, as in GGUF files; () if there are none. In a llama3 rope they replace those that
    its parameters give, which differ by roundings."""


PLAIN_ROPE = RopeConfig()


def hf_rope(raw: JSONFields, max_positions: int) -> tuple[RopeConfig, JSONFields]:
    """Rope of version 4 files (`rope_theta`, `rope_scaling`) and version 5 files (`rope_parameters`).

    Args:
      raw: the configuration, with the defaults of its class.
      max_positions: its `max_position_embeddings`.
    Returns: the rope, and the parameters that it was read from.
    Raises:
      ConfigError: the kind is not implemented, or a parameter is missing or out of range.
    """
    given = raw.object("rope_scaling")
    if given is None or not given.values:
        given = raw.object("rope_parameters")
    parameters = given or JSONFields({}, error=ConfigError)
    nested = [key for key, value in parameters.values.items() if isinstance(value, dict)]
    if nested:
        raise ConfigError(
            f"rope parameters of their own for {nested[0]!r} are not implemented; only one rope for all layers is"
        )
    theta = _theta(parameters if "rope_theta" in parameters else raw)
    kind = parameters.text("rope_type") or parameters.text("type") or "default"
    if parameters.values.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ConfigError(
            f"partial_rotary_factor = {shown(parameters.values['partial_rotary_factor'])} is not implemented"
        )
    if kind == "default":
        return RopeConfig(theta=theta), parameters
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=_factor(parameters, "factor")), parameters
    if kind == "llama3":
        return _llama3(parameters, theta, original_context(raw, parameters, max_positions)), parameters
    if kind == "yarn":
        return _yarn(parameters, theta, original_context(raw, parameters, max_positions), max_positions), parameters
    if kind == "longrope":
        factors = parameters.numbers("long_factor", above=0)
        same = parameters.values.get("short_factor") == parameters.values.get("long_factor")
        if not factors or not same or parameters.values.get("attention_factor") != 1:
            raise ConfigError(
                "longrope is not implemented, except with one factor for each frequency at every length of text: "
                "long_factor equal to short_factor, and an attention_factor of 1"
            )
        return RopeConfig(theta=theta, kind="factors", frequency_factors=factors), parameters
    raise ConfigError(f"rope type {shown(kind)} is not implemented; default, linear, llama3 and yarn are")


def original_context(raw: JSONFields, parameters: JSONFields, default: int | None = None) -> int:
    """Pre-training context of a llama3 or yarn rope: next to the rope parameters, or else among them."""
    key = "original_max_position_embeddings"
    return raw.whole(key) if key in raw else parameters.whole(key, default)


def params_rope(model: MistralParams) -> RopeConfig:
    """Rope of Mistral's own `params.json`."""
    if (yarn := model.yarn) is None:
        return RopeConfig(theta=model.rope_theta)
    return RopeConfig(
        theta=model.rope_theta,
        kind="yarn",
        factor=yarn.factor,
        original_max_position_embeddings=yarn.context,
        beta_fast=yarn.beta_fast,
        beta_slow=yarn.beta_slow,
        attention_factor=_attention_factor(yarn.factor, None, None) if yarn.apply_scale else 1.0,
    )


def _theta(fields: JSONFields, default: float = 10000.0) -> float:
    # At 1 all frequencies are equal, and yarn's ramp has no borders.
    return fields.number("rope_theta", default, above=1, most=MOST_THETA)


def _factor(fields: JSONFields, key: str, default: float | None = None) -> float:
    return fields.number(key, default, above=0, most=MOST_FACTOR)


def _llama3(parameters: JSONFields, theta: float, original: int) -> RopeConfig:
    rope = RopeConfig(
        theta=theta,
        kind="llama3",
        factor=_factor(parameters, "factor"),
        low_freq_factor=_factor(parameters, "low_freq_factor"),
        high_freq_factor=_factor(parameters, "high_freq_factor"),
        original_max_position_embeddings=original,
        frequency_factors=parameters.numbers("frequency_factors", above=0) or (),
    )
    if rope.high_freq_factor <= rope.low_freq_factor:
        raise ConfigError("llama3 rope: high_freq_factor must be greater than low_freq_factor")
    return rope


def _yarn(parameters: JSONFields, theta: float, original: int, max_positions: int) -> RopeConfig:
    factor = _factor(parameters, "factor", max_positions / original)
    scales = [_multiplier(parameters, key) for key in ("mscale", "mscale_all_dim")]
    return RopeConfig(
        theta=theta,
        kind="yarn",
        factor=factor,
        original_max_position_embeddings=original,
        beta_fast=_factor(parameters, "beta_fast", 32.0),
        beta_slow=_factor(parameters, "beta_slow", 1.0),
        attention_factor=_factor(parameters, "attention_factor", _attention_factor(factor, *scales)),
        truncate=parameters.flag("truncate", True),
    )


def _multiplier(parameters: JSONFields, key: str) -> float | None:
    """mscale or mscale_all_dim; 0 counts as absent."""
    if key not in parameters or parameters.values[key] == 0:
        return None
    return parameters.number(key, above=-MOST_FACTOR, most=MOST_FACTOR)


def _attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    def get_mscale(scale: float, m: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * m * math.log(scale) + 1.0

    if not mscale or not mscale_all_dim:
        return get_mscale(factor)
    own, all_dim = get_mscale(factor, mscale), get_mscale(factor, mscale_all_dim)
    if own <= 0 or all_dim <= 0:
        raise ConfigError(
            f"yarn with mscale {mscale:g} and mscale_all_dim {mscale_all_dim:g} has no attention factor above 0"
        )
    return own / all_dim
