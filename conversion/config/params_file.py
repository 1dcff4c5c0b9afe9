"""What a `params.json` of Mistral's own format says, as plain data: the one place that knows its keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from conversion.config.model_sizes import (
    MOST_FACTOR,
    MOST_HEAD_DIM,
    MOST_HEADS,
    MOST_INNER_WIDTH,
    MOST_LAYERS,
    MOST_TEMPERATURE,
    MOST_THETA,
    MOST_TOKENS,
    MOST_WIDTH,
)
from conversion.files.json_fields import LARGEST, JSONFields

_UNIMPLEMENTED = ("moe", "quantization", "q_lora_rank", "kv_lora_rank", "lora")
_CONTEXT = "original_max_position_embeddings"


@dataclass(frozen=True, kw_only=True)
class Yarn:
    """Parameters of a yarn rope."""

    factor: float
    context: int
    """Tokens of the context of the pre-training."""
    beta_fast: float
    beta_slow: float
    apply_scale: bool
    """Whether attention is scaled with it; else its factor is 1."""


@dataclass(frozen=True, kw_only=True)
class MistralParams:
    """The shape and the constants of a model."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    norm_eps: float
    max_positions: int
    rope_theta: float
    yarn: Yarn | None
    temperature: tuple[float, int]
    """Factor by which queries grow with each context, and the context; (0, 0): they do not."""
    windows: tuple[int | None, ...]
    """Sliding window of each layer."""
    windows_differ: bool
    """Whether the file has a list of them, which repeats over the layers."""
    tied_embeddings: bool


def read_params(params: Mapping[str, Any], *, error: type[ValueError]) -> MistralParams:
    """Read a parsed `params.json`.

    Raises:
      error: a feature that is not implemented, or a size that is missing or out of range.
    """
    for key in _UNIMPLEMENTED:
        if params.get(key):
            raise error(f"params.json: {key!r} is not implemented")
    fields = JSONFields(params, error=error, source="params.json")
    layers, heads = fields.whole("n_layers", most=MOST_LAYERS), fields.whole("n_heads", most=MOST_HEADS)
    dim = fields.whole("dim", most=MOST_WIDTH)
    # As mistral-inference infers it: the models without a window have the larger one.
    theta = 1e6 if fields.values.get("sliding_window") is None else 1e4
    yarn = _yarn(fields)
    return MistralParams(
        vocab_size=fields.whole("vocab_size", most=MOST_TOKENS),
        hidden_size=dim,
        intermediate_size=fields.whole("hidden_dim", most=MOST_INNER_WIDTH),
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=fields.whole("n_kv_heads", heads, most=MOST_HEADS),
        head_dim=fields.whole("head_dim", dim // heads, most=MOST_HEAD_DIM),
        norm_eps=fields.number("norm_eps", 1e-5, above=0, most=1),
        max_positions=_max_positions(fields, yarn, error),
        # At 1 all frequencies are the same, and the ramp of yarn has no borders.
        rope_theta=fields.number("rope_theta", theta, above=1, most=MOST_THETA),
        yarn=yarn,
        temperature=_temperature(fields),
        windows=_windows(fields, layers),
        windows_differ=isinstance(fields.values.get("sliding_window"), list),
        tied_embeddings=fields.flag("tied_embeddings", False),
    )


def _yarn(fields: JSONFields) -> Yarn | None:
    yarn = fields.object("yarn")
    if yarn is None or not yarn.values:
        return None
    return Yarn(
        factor=yarn.number("factor", above=0, most=MOST_FACTOR),
        context=yarn.whole(_CONTEXT),
        beta_fast=yarn.number("beta", 32.0, above=0, most=MOST_FACTOR),
        beta_slow=yarn.number("alpha", 1.0, above=0, most=MOST_FACTOR),
        apply_scale=yarn.flag("apply_scale", True),
    )


def _temperature(fields: JSONFields) -> tuple[float, int]:
    tempered = fields.object("llama_4_scaling")
    beta = 0.0 if tempered is None else tempered.number("beta", 0.0, above=-1, most=MOST_TEMPERATURE)
    return (0.0, 0) if tempered is None or not beta else (beta, tempered.whole(_CONTEXT))


def _max_positions(fields: JSONFields, yarn: Yarn | None, error: type[ValueError]) -> int:
    for key in ("max_position_embeddings", "max_seq_len", "model_max_length"):
        if key in fields:
            return fields.whole(key)
    if yarn is None:
        return 32768
    stretched = yarn.context * yarn.factor
    if not 1 <= stretched <= LARGEST:
        raise error(f"params.json: yarn stretches the context to {stretched:g} tokens; expected at most {LARGEST}")
    return int(stretched)


def _windows(fields: JSONFields, layers: int) -> tuple[int | None, ...]:
    value = fields.values.get("sliding_window")
    if not isinstance(value, list):
        return (None if value is None else fields.whole("sliding_window"),) * layers
    pattern = cast("list[Any]", value)
    if not pattern or not all(item is None or (type(item) is int and 1 <= item <= LARGEST) for item in pattern):
        raise fields.wrong("sliding_window", "a positive whole number, null, or a list of such")
    return tuple(pattern[layer % len(pattern)] for layer in range(layers))
