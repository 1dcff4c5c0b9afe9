"""The KV cache: preallocated, functional, updated in place because every step donates it.

Each layer owns keys `[slots, K, S, H]` and values `[slots, K, H, S]`: in both products of attention the axis that is
summed over then comes last and the batch axes first. So nothing is transposed when the cache is read, which is often,
at the price of a scattered write, which is once for each token.

A slot is the room of one sequence. The token at position p is written to index `p % S` of its slot, so a layer with a
sliding window keeps a ring only a little longer than its window, and nothing is ever shifted. With window 4 and S = 6,
after nine tokens (positions 0 to 8):

    index      0  1  2  3  4  5
    position   6  7  8  3  4  5      the query at 8 sees 5 6 7 8; 3 and 4 are masked by their position, not erased

Which position an index holds follows from the last position written, so no table is kept: see `key_positions`.

The rest of the model uses `allocate`, `write`, `key_blocks` and `key_positions` only; pages could replace slots behind
them. Axis letters: B rows, T tokens, S cache length, K kv heads, H head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import jax
import jax.numpy as jnp

from mistral_jax.model.config import MistralConfig
from mistral_jax.quant.dot import storable_axis

BLOCK = 128
"""Keys are read in blocks of this length; S is a multiple of it."""


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=[])
@dataclass(frozen=True)
class LayerCache:
    """Keys (rotated) and values of one layer."""

    keys: jax.Array  # [slots, K, S, H]
    values: jax.Array  # [slots, K, H, S]

    @property
    def length(self) -> int:
        return self.keys.shape[2]


@partial(jax.tree_util.register_dataclass, data_fields=["layers"], meta_fields=[])
@dataclass(frozen=True)
class KVCache:
    """The caches of all layers: a pytree to pass to a jitted step, donated, and replace by what the step returns."""

    layers: tuple[LayerCache, ...]
    HEAD_AXIS: ClassVar[int] = 1
    """The axis of kv heads in all arrays: over several devices they are divided along it."""

    @property
    def slots(self) -> int:
        return self.layers[0].keys.shape[0]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves(self))

    @classmethod
    def allocate(
        cls, config: MistralConfig, *, slots: int, length: int, chunk: int, dtype: jax.typing.DTypeLike
    ) -> KVCache:
        """Zeros for `slots` sequences of at most `length` tokens, written at most `chunk` tokens at a time.

        Zeros, not uninitialised memory: a masked key is multiplied by zero, and zero times a stray NaN is NaN.
        """
        layers: list[LayerCache] = []
        for size in layer_lengths(config, length=length, chunk=chunk):
            K, H = config.num_kv_heads, stored_head_dim(config)
            layers.append(LayerCache(jnp.zeros((slots, K, size, H), dtype), jnp.zeros((slots, K, H, size), dtype)))
        return cls(tuple(layers))


def stored_head_dim(config: MistralConfig) -> int:
    """H of the cache: the model's, with zeros beside it where products need them."""
    return storable_axis(config.head_dim)


def layer_lengths(config: MistralConfig, *, length: int, chunk: int) -> list[int]:
    """S of each layer: the whole length, or the window and one chunk (its first query still sees a full window)."""
    wanted = [length if window is None else min(length, window + chunk) for window in config.layer_windows]
    return [-(-size // BLOCK) * BLOCK for size in wanted]


@partial(jax.jit, inline=True)
def write(
    layer: LayerCache,
    keys: jax.Array,
    values: jax.Array,
    *,
    first_slot: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
) -> LayerCache:
    """Store the keys and values of T tokens for B neighbouring slots.

    Args:
      keys, values: [B, T, K, H], T at most the `chunk` of the allocation, H that of the model.
      first_slot: int32 scalar; row b goes to slot `first_slot + b`.
      positions: int32 [B, T].
      valid: bool [B, T]; other tokens (padding, idle rows) are not stored.
    """
    S = layer.length
    spare = ((0, 0), (0, 0), (0, 0), (0, layer.keys.shape[-1] - keys.shape[-1]))
    keys, values = jnp.pad(keys, spare), jnp.pad(values, spare)
    slots = first_slot + jnp.arange(keys.shape[0])[:, None]
    # An index out of bounds is dropped by the scatter: that is how invalid tokens leave no trace.
    index = jnp.where(valid, positions % S, S)
    return LayerCache(
        layer.keys.at[slots, :, index].set(keys.astype(layer.keys.dtype), mode="drop"),
        layer.values.at[slots, :, :, index].set(values.astype(layer.values.dtype), mode="drop"),
    )


def key_blocks(
    layer: LayerCache, *, first_slot: jax.Array, rows: int, first: jax.Array | int, count: int = 1
) -> tuple[jax.Array, jax.Array]:
    """Keys [B, K, J, H] and values [B, K, H, J] of `rows` neighbouring slots: `count` blocks from number `first` on."""
    _, K, _, H = layer.keys.shape
    J = count * BLOCK
    keys = jax.lax.dynamic_slice(layer.keys, (first_slot, 0, first * BLOCK, 0), (rows, K, J, H))
    values = jax.lax.dynamic_slice(layer.values, (first_slot, 0, 0, first * BLOCK), (rows, K, H, J))
    return keys, values


def key_positions(index: jax.Array, last: jax.Array, S: int) -> jax.Array:
    """Position held at each cache index, negative where nothing was written yet.

    Args:
      index: int32 [J], cache indices.
      last: int32 [B], the last position written in each row; negative for an empty row.
    Returns: int32 [B, J]: the greatest p <= last with p % S == index.
    """
    last = last[:, None]
    return last - (last - index) % S
