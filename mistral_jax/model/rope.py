"""Rotary position embeddings: inverse frequencies of each kind of context extension, and the rotation itself.

Axis letters: B rows, T tokens, N heads, H head dim.
Source: `transformers.modeling_rope_utils` (halves layout: dimension i is paired with i + H/2); YaRN: arXiv 2309.00071.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mistral_jax.model.config import MistralConfig, RopeConfig
from mistral_jax.quant.dot import rounded_product


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Angular frequency of each pair of dimensions: float32 [H/2]."""
    plain = 1.0 / rope.theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    if rope.frequency_factors:
        return (plain / np.array(rope.frequency_factors)).astype(np.float32)
    if rope.kind == "linear":
        return (plain / rope.factor).astype(np.float32)
    if rope.kind == "llama3":
        return _llama3(plain, rope).astype(np.float32)
    if rope.kind == "yarn":
        return _yarn(plain, rope, head_dim).astype(np.float32)
    return plain.astype(np.float32)


def _llama3(plain: np.ndarray, rope: RopeConfig) -> np.ndarray:
    """Long wavelengths are stretched, short ones kept, those in between blended."""
    context = rope.original_max_position_embeddings
    wavelength = 2 * math.pi / plain
    blend = (context / wavelength - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - blend) * plain / rope.factor + blend * plain
    is_long = wavelength > context / rope.low_freq_factor
    is_short = wavelength < context / rope.high_freq_factor
    return np.where(is_long, plain / rope.factor, np.where(is_short, plain, blended))


def _yarn(plain: np.ndarray, rope: RopeConfig, head_dim: int) -> np.ndarray:
    """Blend kept and stretched frequencies along a ramp, given in rotations within the original context."""

    def dimension_of(rotations: float) -> float:
        context = rope.original_max_position_embeddings
        return head_dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((np.arange(head_dim // 2) - low) / (high - low), 0, 1)
    return plain / rope.factor * ramp + plain * (1 - ramp)


def rotation(config: MistralConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines for `positions`, int32 [B, T]: two float32 arrays [B, T, 1, H/2]."""
    frequencies = jnp.asarray(inverse_frequencies(config.rope, config.head_dim))
    angles = positions.astype(jnp.float32)[..., None, None] * frequencies  # [B, T, 1, H/2]
    scale = config.rope.attention_factor
    return jnp.cos(angles) * scale, jnp.sin(angles) * scale


@partial(jax.tree_util.register_dataclass, data_fields=["cos", "sin", "temperature"], meta_fields=["query_scale"])
@dataclass(frozen=True)
class Positions:
    """What all layers derive from the positions of a batch, computed once."""

    cos: jax.Array
    """float32 [B, T, 1, H/2]"""
    sin: jax.Array
    temperature: jax.Array | None
    """See `attention_temperature`."""
    query_scale: float
    """Static: the softmax scale."""

    @classmethod
    def of(cls, config: MistralConfig, positions: jax.Array) -> Positions:
        return cls(*rotation(config, positions), attention_temperature(config, positions), config.head_dim**-0.5)


@partial(jax.jit, inline=True)
def rotate(x: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the halves of each head. `x` [B, T, N, H] in any float type; returns float32 of the same shape."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = (
        rounded_product(first, cos) - rounded_product(second, sin),
        rounded_product(second, cos) + rounded_product(first, sin),
    )
    return jnp.concatenate(rotated, axis=-1)


def attention_temperature(config: MistralConfig, positions: jax.Array) -> jax.Array | None:
    """Ministral 3's scale of the queries, float32 [B, T, 1, 1]; None for models without it."""
    if not config.attention_temperature_beta:
        return None
    # Integer division: in floats XLA may multiply by a reciprocal, which is off by one at multiples of e.g. 41.
    steps = (positions // config.attention_temperature_length).astype(jnp.float32)
    return (1.0 + config.attention_temperature_beta * jnp.log1p(steps))[..., None, None]


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values of a layer's tokens, before they are rotated. Exists while a program is traced."""

    qkv: jax.Array | tuple[jax.Array, ...]
    """float32 [B, T, N + 2K, H]; or the three, if they are sharded over devices."""
    sizes: tuple[int, int]
    """N and K."""
    dtype: jnp.dtype
    """Of activations."""

    def rotated(self, at: Positions) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B, T, N, H], multiplied by the softmax scale, and keys and values [B, T, K, H], in the type of
        activations."""
        parts = self._parts()
        with jax.named_scope("rope"):
            queries = rotate(next(parts), at.cos, at.sin) * at.query_scale
            if at.temperature is not None:
                queries = queries * at.temperature
            keys = rotate(next(parts), at.cos, at.sin).astype(self.dtype)
        return queries.astype(self.dtype), keys, next(parts).astype(self.dtype)

    def _parts(self) -> Iterator[jax.Array]:
        """Each is sliced where it is used: the order of operations is part of a program."""
        if isinstance(self.qkv, tuple):
            return iter(self.qkv)
        qkv, (N, K) = self.qkv, self.sizes
        return (qkv[:, :, first:last] for first, last in ((0, N), (N, N + K), (N + K, N + 2 * K)))
