"""The shape of a model, read from `config.json` (Hugging Face) or `params.json` (Mistral's own format).

One configuration describes the dense Mistral and Llama families. Features that are not implemented are refused by
name: a model that loads is the model that the file describes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conversion.files.json_fields import shown
from conversion.files.json_file import read_json_object
from conversion.files.regular_file import exists
from conversion.weights.decoder_weights import count_parameters
from conversion.weights.stored_shapes import kv_bytes_per_token
from mistral_jax.model.config_error import ConfigError
from mistral_jax.model.hf_config import SUPPORTED_ARCHITECTURES, hf_fields
from mistral_jax.model.params_config import params_fields
from mistral_jax.model.rope_config import PLAIN_ROPE, RopeConfig

__all__ = ["SUPPORTED_ARCHITECTURES", "ConfigError", "MistralConfig", "RopeConfig"]


@dataclass(frozen=True, kw_only=True)
class MistralConfig:
    """Shape and constants of a dense Mistral or Llama decoder. Axis letters: docs/architecture/index.md."""

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
    rope: RopeConfig = PLAIN_ROPE
    layer_windows: tuple[int | None, ...] = ()
    """Sliding window of each layer: a query sees itself and the `window - 1` keys before it; None: all earlier
    keys."""
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
    """The checkpoint's type according to its configuration, such as "bfloat16"."""

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
            if type(value) is not int or value < 1:
                raise ConfigError(f"{name} is {shown(value)}; expected a positive integer")
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
            raise ConfigError(
                f"sliding_window is {min(w for w in self.layer_windows if w)}; expected a positive number or null"
            )
        if self.attention_temperature_beta and self.attention_temperature_length < 1:
            raise ConfigError("attention temperature (llama_4_scaling) needs original_max_position_embeddings")

    @property
    def num_parameters(self) -> int:
        """Number of weights, tied embeddings counted once."""
        return count_parameters(self, num_layers=self.num_layers)

    def kv_bytes_per_token(self, itemsize: int) -> int:
        """See `conversion.weights.stored_shapes.kv_bytes_per_token`."""
        return kv_bytes_per_token(
            num_layers=self.num_layers, num_kv_heads=self.num_kv_heads, head_dim=self.head_dim, itemsize=itemsize
        )

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> MistralConfig:
        """Read a parsed `config.json`.

        Args:
          raw: the JSON object; for `Mistral3ForConditionalGeneration` its `text_config` is used.
        Raises:
          ConfigError: an architecture or field is not implemented, missing or contradictory.
        """
        return cls(**hf_fields(raw))

    @classmethod
    def from_mistral(cls, raw: Mapping[str, Any]) -> MistralConfig:
        """Read a parsed `params.json` of Mistral's own format (next to `consolidated.safetensors`).

        Raises:
          ConfigError: as `from_hf`.
        """
        return cls(**params_fields(raw))

    @classmethod
    def from_folder(cls, folder: Path | str) -> MistralConfig:
        """Read a model folder's `config.json`, or `params.json` if there is none.

        Raises:
          ConfigError: as `from_hf`; also if the folder has neither file, or the file is not a JSON object.
        """
        folder = Path(folder)
        for name, read in (("config.json", cls.from_hf), ("params.json", cls.from_mistral)):
            path = folder / name
            if exists(path):
                return _about(path, read, read_json_object(path, error=ConfigError))
        raise ConfigError(f"{folder} has neither config.json nor params.json: is it a model folder?")


def _about(path: Path, read: Callable[[Mapping[str, Any]], MistralConfig], raw: Mapping[str, Any]) -> MistralConfig:
    """Read a configuration; errors name its file."""
    try:
        return read(raw)
    except ConfigError as error:
        raise ConfigError(f"{path}: {str(error).removeprefix('params.json: ')}") from error
