"""The shape of a model, read from `config.json` (Hugging Face) or `params.json` (Mistral's own format).

One configuration describes the dense Mistral and Llama families. What a file asks for and we do not implement is refused by
name: a model that loads is the model that the file describes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from conversion.class_defaults import CLASS_DEFAULTS, MODEL_TYPES

SUPPORTED_ARCHITECTURES = (
    "MistralForCausalLM",
    "LlamaForCausalLM",
    "MinistralForCausalLM",
    "Ministral3ForCausalLM",
    "Mistral3ForConditionalGeneration",
)

# What the reference implementation of these architectures would act on and we do not. A key is refused unless its value is
# one of those listed (None always passes).
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


class ConfigError(ValueError):
    """A model's configuration is missing, contradictory, or asks for something that is not implemented."""


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding, and how it is stretched beyond the trained context.

    Source: `transformers.modeling_rope_utils`; YaRN: arXiv 2309.00071.
    """

    theta: float = 10000.0
    kind: Literal["default", "linear", "llama3", "yarn", "factors"] = "default"
    """factors: nothing but `frequency_factors`."""
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
    """yarn only: multiplies cosines and sines. Resolved from mscale and mscale_all_dim when the file does not give it."""
    truncate: bool = True
    """yarn only: round the borders of the ramp to whole dimensions."""
    frequency_factors: tuple[float, ...] = ()
    """What each of the H/2 frequencies is divided by, as GGUF files list it. Of a llama3 rope they go before what its parameters
    give, which differs by roundings; () where there are none."""


@dataclass(frozen=True, kw_only=True)
class MistralConfig:
    """Shape and constants of a dense decoder of the Mistral or Llama family. Axis letters: see docs/architecture.md."""

    architecture: str = "MistralForCausalLM"
    vocab_size: int
    """V: rows of the embedding, padding rows included."""
    hidden_size: int
    """D"""
    intermediate_size: int
    """F"""
    num_layers: int
    """L"""
    num_heads: int
    """N"""
    num_kv_heads: int
    """K; divides N."""
    head_dim: int
    """H; N * H need not equal D (Nemo, Small 24B)."""
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 32768
    rope: RopeConfig = RopeConfig()
    layer_windows: tuple[int | None, ...] = ()
    """Sliding window of each layer: a query sees itself and the `window - 1` keys before it. None: all keys before it."""
    attention_temperature_beta: float = 0.0
    """Ministral 3: queries at position p are multiplied by `1 + beta * log(1 + floor(p / original context))`."""
    attention_temperature_length: int = 0
    """The original context in that formula."""
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    """q, k, v and o projections have a bias (some Llama derivatives)."""
    mlp_bias: bool = False
    bos_token_id: int | None = 1
    eos_token_ids: tuple[int, ...] = (2,)
    dtype: str | None = None
    """The checkpoint's own type as its configuration states it, such as "bfloat16"."""

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected a positive integer")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_key_value_heads {self.num_kv_heads} does not divide num_attention_heads {self.num_heads}; "
                "grouped-query attention needs equal groups"
            )
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; rotary embeddings need an even number")
        if not self.layer_windows:
            object.__setattr__(self, "layer_windows", (None,) * self.num_layers)
        if len(self.layer_windows) != self.num_layers:
            raise ConfigError(f"{len(self.layer_windows)} layer types for {self.num_layers} layers")
        factors = len(self.rope.frequency_factors)
        if factors != self.head_dim // 2 and (factors or self.rope.kind == "factors"):
            raise ConfigError(
                f"{factors} rope factors for heads of {self.head_dim} dimensions; expected one for each two"
            )
        if any(window is not None and window < 1 for window in self.layer_windows):
            raise ConfigError(f"sliding_window is {self.layer_windows}; expected a positive number or null")
        if self.attention_temperature_beta and self.attention_temperature_length < 1:
            raise ConfigError("attention temperature (llama_4_scaling) needs original_max_position_embeddings")

    @property
    def num_parameters(self) -> int:
        """Number of weights, tied embeddings counted once."""
        attention = (2 * self.num_heads + 2 * self.num_kv_heads) * self.head_dim * self.hidden_size
        mlp = 3 * self.hidden_size * self.intermediate_size
        biases = (
            (self.num_heads + 2 * self.num_kv_heads) * self.head_dim + self.hidden_size if self.attention_bias else 0
        )
        biases += 2 * self.intermediate_size + self.hidden_size if self.mlp_bias else 0
        layers = self.num_layers * (attention + mlp + biases + 2 * self.hidden_size)
        return layers + self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2) + self.hidden_size

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """Bytes that one token takes in the KV cache with elements of `itemsize` bytes (windows not counted)."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim * itemsize

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> MistralConfig:
        """Read a parsed `config.json`.

        Args:
          raw: the JSON object; for `Mistral3ForConditionalGeneration` its `text_config` is used.
        Raises:
          ConfigError: an architecture or field that is not implemented, or a missing or contradictory one.
        """
        return _from_hf(cls, raw)

    @classmethod
    def from_mistral(cls, raw: Mapping[str, Any]) -> MistralConfig:
        """Read a parsed `params.json` of Mistral's own format (beside `consolidated.safetensors`).

        Raises:
          ConfigError: as `from_hf`.
        """
        return _from_mistral(cls, raw)

    @classmethod
    def from_folder(cls, folder: Path | str) -> MistralConfig:
        """Read `config.json`, or else `params.json`, of a model folder.

        Raises:
          ConfigError: as `from_hf`; also where the folder has neither file, or the file is not a JSON object.
        """
        folder = Path(folder)
        for name, read in (("config.json", cls.from_hf), ("params.json", cls.from_mistral)):
            path = folder / name
            if path.is_file():
                return read(read_json_object(path))
        raise ConfigError(f"{folder} has neither config.json nor params.json: is it a model folder?")


def read_json_object(path: Path) -> dict[str, Any]:
    """Parse a JSON file that must hold an object; ConfigError says what is wrong with it otherwise."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a JSON {type(raw).__name__}; expected an object")
    return raw  # pyright: ignore[reportUnknownVariableType]


def _require(raw: Mapping[str, Any], key: str) -> Any:
    if raw.get(key) is None:
        raise ConfigError(f"the configuration lacks {key!r}")
    return raw[key]


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)  # pyright: ignore[reportUnknownVariableType]


def _from_hf(cls: type[MistralConfig], outer: Mapping[str, Any]) -> MistralConfig:
    architectures = outer.get("architectures") or []
    architecture = architectures[0] if architectures else None
    if architecture not in SUPPORTED_ARCHITECTURES:
        named = repr(architecture) if architecture else f"none (model_type {outer.get('model_type')!r})"
        raise ConfigError(
            f"architecture {named} is not implemented; implemented are {', '.join(SUPPORTED_ARCHITECTURES)}"
        )
    wrapped = outer.get("text_config") is not None
    text = dict(outer["text_config"] if wrapped else outer)
    model_type = text.get("model_type") or MODEL_TYPES[architecture]
    if model_type not in CLASS_DEFAULTS:
        part = "a text model" if wrapped else "a model"
        raise ConfigError(f"{architecture} with {part} of type {model_type!r} is not implemented")
    if wrapped and "quantization_config" in outer:
        text.setdefault("quantization_config", outer["quantization_config"])
    raw = {**CLASS_DEFAULTS[model_type], **text}
    for key, harmless in _UNIMPLEMENTED.items():
        value = raw.get(key)
        if value is not None and value not in harmless:
            raise ConfigError(f"{key} = {value!r} is not implemented")
    activation = raw.get("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ConfigError(f"hidden_act {activation!r} is not implemented; the family uses silu")

    num_layers = int(_require(raw, "num_hidden_layers"))
    num_heads = int(_require(raw, "num_attention_heads"))
    hidden_size = int(_require(raw, "hidden_size"))
    head_dim = raw.get("head_dim")
    if head_dim is None:
        if hidden_size % num_heads:
            raise ConfigError(
                f"hidden_size {hidden_size} is not a multiple of {num_heads} heads and head_dim is not given"
            )
        head_dim = hidden_size // num_heads
    max_positions = int(_require(raw, "max_position_embeddings"))
    if model_type == "ministral3" and not (raw.get("rope_scaling") or raw.get("rope_parameters")):
        raise ConfigError("the configuration lacks 'rope_parameters', which Ministral 3 needs")
    rope, beta, temperature_length = _hf_rope(raw, max_positions)
    return cls(
        architecture=architecture,
        vocab_size=int(_require(raw, "vocab_size")),
        hidden_size=hidden_size,
        intermediate_size=int(_require(raw, "intermediate_size")),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(raw.get("num_key_value_heads") or num_heads),
        head_dim=int(head_dim),
        rms_norm_eps=float(_require(raw, "rms_norm_eps")),
        max_position_embeddings=max_positions,
        rope=rope,
        layer_windows=_hf_windows(raw, model_type, num_layers),
        attention_temperature_beta=beta,
        attention_temperature_length=temperature_length,
        # Either may say so; `load_weights` has the last word when the files hold another output matrix.
        tie_word_embeddings=bool(raw.get("tie_word_embeddings") or outer.get("tie_word_embeddings")),
        attention_bias=bool(raw.get("attention_bias", False)),
        mlp_bias=bool(raw.get("mlp_bias", False)),
        bos_token_id=raw.get("bos_token_id", outer.get("bos_token_id", 1)),
        eos_token_ids=_token_ids(raw.get("eos_token_id", outer.get("eos_token_id", 2))),
        dtype=raw.get("dtype") or raw.get("torch_dtype") or outer.get("dtype") or outer.get("torch_dtype"),
    )


def _hf_windows(raw: Mapping[str, Any], model_type: str, num_layers: int) -> tuple[int | None, ...]:
    """Sliding window of each layer. As in the reference implementation, only `ministral` has layers of several types."""
    window = None if model_type == "llama" or raw.get("use_sliding_window") is False else raw["sliding_window"]
    layer_types = raw.get("layer_types")
    if layer_types is None or model_type != "ministral":
        return (window,) * num_layers
    unknown = sorted(set(layer_types) - {"full_attention", "sliding_attention"})
    if unknown:
        raise ConfigError(f"layer type {unknown[0]!r} is not implemented; full_attention and sliding_attention are")
    if window is None and "sliding_attention" in layer_types:
        raise ConfigError("layer_types names sliding_attention but sliding_window is null")
    return tuple(window if kind == "sliding_attention" else None for kind in layer_types)


def _hf_rope(raw: Mapping[str, Any], max_positions: int) -> tuple[RopeConfig, float, int]:
    """Rope of version 4 files (`rope_theta`, `rope_scaling`) and version 5 files (`rope_parameters`).

    Returns: the rope, and the beta and length of Ministral 3's attention temperature.
    """
    parameters = dict(raw.get("rope_scaling") or raw.get("rope_parameters") or {})
    nested = [key for key, value in parameters.items() if isinstance(value, dict)]
    if nested:
        raise ConfigError(
            f"rope parameters of their own for {nested[0]!r} are not implemented; one rope for all layers is"
        )
    theta = float(parameters.get("rope_theta") or raw.get("rope_theta") or 10000.0)
    kind = parameters.get("rope_type") or parameters.get("type") or "default"
    beta = float(parameters.get("llama_4_scaling_beta") or 0.0)
    original = int(
        raw.get("original_max_position_embeddings") or parameters.get("original_max_position_embeddings") or 0
    )
    if parameters.get("partial_rotary_factor") not in (None, 1, 1.0):
        raise ConfigError(f"partial_rotary_factor = {parameters['partial_rotary_factor']} is not implemented")
    if kind == "default":
        return RopeConfig(theta=theta), beta, original
    if kind == "linear":
        return RopeConfig(theta=theta, kind="linear", factor=float(_require(parameters, "factor"))), beta, original
    if kind == "llama3":
        rope = RopeConfig(
            theta=theta,
            kind="llama3",
            factor=float(_require(parameters, "factor")),
            low_freq_factor=float(_require(parameters, "low_freq_factor")),
            high_freq_factor=float(_require(parameters, "high_freq_factor")),
            original_max_position_embeddings=original or max_positions,
            frequency_factors=_frequency_factors(parameters, "frequency_factors"),
        )
        if rope.high_freq_factor <= rope.low_freq_factor:
            raise ConfigError("llama3 rope: high_freq_factor must be greater than low_freq_factor")
        return rope, beta, original
    if kind == "yarn":
        original = original or max_positions
        factor = float(parameters.get("factor") or max_positions / original)
        given = parameters.get("attention_factor")
        rope = RopeConfig(
            theta=theta,
            kind="yarn",
            factor=factor,
            original_max_position_embeddings=original,
            beta_fast=float(parameters.get("beta_fast") or 32.0),
            beta_slow=float(parameters.get("beta_slow") or 1.0),
            attention_factor=float(given)
            if given is not None
            else _yarn_attention_factor(factor, parameters.get("mscale"), parameters.get("mscale_all_dim")),
            truncate=bool(parameters.get("truncate", True)),
        )
        return rope, beta, original
    if kind == "longrope":
        factors = _frequency_factors(parameters, "long_factor")
        same = parameters.get("short_factor") == parameters.get("long_factor")
        if not factors or not same or parameters.get("attention_factor") != 1:
            raise ConfigError(
                "longrope is not implemented, except with one factor for each frequency at every length of text: "
                "long_factor equal to short_factor, and an attention_factor of 1"
            )
        return RopeConfig(theta=theta, kind="factors", frequency_factors=factors), beta, original
    raise ConfigError(f"rope type {kind!r} is not implemented; default, linear, llama3 and yarn are")


def _frequency_factors(parameters: Mapping[str, Any], key: str) -> tuple[float, ...]:
    """A list of factors; () where there is none."""
    given = parameters.get(key)
    listed = cast("list[Any]", given) if isinstance(given, list) else []
    if (given is not None and not listed) or not all(type(f) in (int, float) and 0 < f < math.inf for f in listed):
        raise ConfigError(f"rope parameter {key!r} is {given!r}; expected a list of positive numbers")
    return tuple(float(factor) for factor in listed)


def _yarn_attention_factor(factor: float, mscale: float | None, mscale_all_dim: float | None) -> float:
    def get_mscale(scale: float, m: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * m * math.log(scale) + 1.0

    if mscale and mscale_all_dim:
        return get_mscale(factor, mscale) / get_mscale(factor, mscale_all_dim)
    return get_mscale(factor)


def _from_mistral(cls: type[MistralConfig], raw: Mapping[str, Any]) -> MistralConfig:
    for key in ("moe", "quantization", "q_lora_rank", "kv_lora_rank", "lora"):
        if raw.get(key):
            raise ConfigError(f"params.json: {key!r} is not implemented")
    num_layers = int(_require(raw, "n_layers"))
    num_heads = int(_require(raw, "n_heads"))
    dim = int(_require(raw, "dim"))
    window = raw.get("sliding_window")
    # As mistral-inference infers it: the models without a window have the larger one.
    rope = RopeConfig(theta=float(raw.get("rope_theta") or (1e6 if window is None else 1e4)))
    temperature = raw.get("llama_4_scaling") or {}
    if yarn := raw.get("yarn"):
        factor = float(_require(yarn, "factor"))
        rope = RopeConfig(
            theta=rope.theta,
            kind="yarn",
            factor=factor,
            original_max_position_embeddings=int(_require(yarn, "original_max_position_embeddings")),
            beta_fast=float(yarn.get("beta") or 32.0),
            beta_slow=float(yarn.get("alpha") or 1.0),
            attention_factor=_yarn_attention_factor(factor, None, None) if yarn.get("apply_scale", True) else 1.0,
        )
    pattern: list[int | None] = window if isinstance(window, list) else [window]  # pyright: ignore[reportUnknownVariableType]
    max_positions = raw.get("max_position_embeddings") or raw.get("max_seq_len") or raw.get("model_max_length")
    if max_positions is None:
        stretched = rope.original_max_position_embeddings * rope.factor
        max_positions = stretched if rope.kind == "yarn" else 32768
    return cls(
        architecture="MistralForCausalLM",
        vocab_size=int(_require(raw, "vocab_size")),
        hidden_size=dim,
        intermediate_size=int(_require(raw, "hidden_dim")),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(raw.get("n_kv_heads") or num_heads),
        head_dim=int(raw.get("head_dim") or dim // num_heads),
        rms_norm_eps=float(raw.get("norm_eps", 1e-5)),
        max_position_embeddings=int(max_positions),
        rope=rope,
        layer_windows=tuple(pattern[i % len(pattern)] for i in range(num_layers)),
        attention_temperature_beta=float(temperature.get("beta") or 0.0),
        attention_temperature_length=int(temperature.get("original_max_position_embeddings") or 0),
        tie_word_embeddings=bool(raw.get("tied_embeddings", False)),
        dtype="bfloat16",
    )
