"""The KV cache: a preallocated pool of blocks for each layer, and tables that map rows to blocks.

A layer's pool holds keys `[P, K, J, H]` and values `[P, K, H, J]`, `P` blocks of `J = BLOCK` tokens. Both products of
attention then sum over the last axis, so the frequent reads need no transpose; the price is a scattered write, once for
each token. Every step donates the cache, and XLA updates it in place.

A row's table lists its blocks in the order of its tokens. The token at position p is written to index `p % S`, where
`S` is the length of the table in tokens. For a layer with a sliding window the table is a ring, a little longer than
the window, and nothing is ever shifted. With blocks of two tokens, window 4 and S = 6, after nine tokens (positions 0
to 8):

    table        7     2     4        blocks 7, 2 and 4 of the pool
    index      0  1  2  3  4  5
    position   6  7  8  3  4  5       the query at 8 sees 5 6 7 8; 3 and 4 are masked by their position, not erased

The position that an index holds follows from the last position written (`key_positions`); the table gives its block.
Two rows may share a block as long as neither writes to it. Block `SPARE` stands in tables where a row has no block:
nothing is written to it, so it stays zero. `KVCache.allocate` gives each slot its own blocks, or none if it is told how
many there are; `KVCache.with_tables` replaces the tables.

Layers with the same window share a table. A `CacheView` holds what a call needs besides the pools: the tables of its
rows, the positions of its tokens, and how attention reads.

Axis letters: B rows, T tokens, P blocks of the pool, C blocks of a table, J tokens of a block, S = C * J, K kv heads,
H head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from conversion.weights.stored_shapes import storable_axis
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.table_kinds import BLOCK, SPARE, table_kinds
from mistral_jax.quant.placement import Placement


@dataclass(frozen=True)
class ReadPlan:
    """How attention reads the blocks of a row. Static: part of a compiled program."""

    blocks: int = 0
    """Read this many blocks at once, the first of the table; 0: those that are in use at run time."""
    kernel: bool = False
    """Read the blocks in use by the kernel for GPUs, `mistral_jax.model.attention_kernel`; else in a loop."""


LOOP = ReadPlan()
KERNEL = ReadPlan(kernel=True)


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values"], meta_fields=[])
@dataclass(frozen=True)
class LayerCache:
    """The pool of one layer: rotated keys, and values."""

    keys: jax.Array  # [P, K, J, H]
    values: jax.Array  # [P, K, H, J]

    @property
    def blocks(self) -> int:
        return self.keys.shape[0]

    @property
    def block(self) -> int:
        """J"""
        return self.keys.shape[2]

    @property
    def head_dim(self) -> int:
        """H as stored, see `stored_head_dim`."""
        return self.keys.shape[-1]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tables", "positions", "valid", "last"],
    meta_fields=["kinds", "plan"],
)
@dataclass(frozen=True, kw_only=True)
class CacheView:
    """The rows of one call. Made by `KVCache.view`, inside a jitted program."""

    tables: tuple[jax.Array, ...]
    """int32 [B, C] for each kind of layer."""
    positions: jax.Array
    """int32 [B, T], consecutive in each row."""
    valid: jax.Array
    """bool [B, T]; other tokens (padding, idle rows) are not stored."""
    last: jax.Array
    """int32 [B], the last position that a row holds after this call's write; negative for idle rows."""
    kinds: tuple[int, ...]
    """Static: which of the tables each layer uses."""
    plan: ReadPlan = LOOP
    """Static."""

    def table(self, layer: int) -> jax.Array:
        return self.tables[self.kinds[layer]]


@partial(jax.tree_util.register_dataclass, data_fields=["layers", "tables"], meta_fields=["kinds"])
@dataclass(frozen=True)
class KVCache:
    """The pools of all layers and the tables of all slots. A pytree: donate it to a jitted step, and replace it by the
    one that the step returns."""

    layers: tuple[LayerCache, ...]
    tables: tuple[jax.Array, ...]
    """int32 [slots, C] for each kind of layer."""
    kinds: tuple[int, ...]
    """Static: which of the tables each layer uses."""
    HEAD_AXIS: ClassVar[int] = 1
    """The axis of kv heads in the pools: they are sharded along it over several devices."""

    @property
    def slots(self) -> int:
        return self.tables[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values, without the small tables."""
        return sum(x.nbytes for x in jax.tree.leaves(self.layers))

    @classmethod
    def allocate(
        cls,
        config: MistralConfig,
        *,
        slots: int,
        length: int,
        chunk: int,
        dtype: jax.typing.DTypeLike,
        counts: Sequence[int] | None = None,
    ) -> KVCache:
        """A cache for `slots` sequences of at most `length` tokens, written at most `chunk` tokens at a time.

        Zero-initialised: a masked value is multiplied by zero, and zero times a NaN of uninitialised memory is NaN.

        Args:
          counts: blocks of the pools of each kind of table, `SPARE` included; slots then have none. None: as many as
            fill the tables of all slots, which then have their own.
        """
        K, H = config.num_kv_heads, stored_head_dim(config)
        kinds, of_layers = table_kinds(config, length=length, chunk=chunk)
        if counts is None:
            counts = own_blocks(config, slots=slots, length=length, chunk=chunk)
            tables = [1 + jnp.arange(slots * k.blocks, dtype=jnp.int32).reshape(slots, k.blocks) for k in kinds]
        else:
            tables = [jnp.full((slots, k.blocks), SPARE, jnp.int32) for k in kinds]
        pools = [(counts[kind], K) for kind in of_layers]
        return cls(
            tuple(
                LayerCache(jnp.zeros((*pool, BLOCK, H), dtype), jnp.zeros((*pool, H, BLOCK), dtype)) for pool in pools
            ),
            tuple(tables),
            of_layers,
        )

    def places(self, placement: Placement) -> KVCache:
        """A pytree of shardings: pools are sharded by kv heads if these divide evenly, tables are replicated."""
        divided = placement.divides(self.layers[0].keys.shape[self.HEAD_AXIS])
        pool: Any = placement.sharding(self.HEAD_AXIS if divided else None)
        whole: Any = placement.sharding()
        layers = tuple(LayerCache(pool, pool) for _ in self.layers)
        return replace(self, layers=layers, tables=tuple(whole for _ in self.tables))

    def view(self, slots: jax.Array, *, positions: jax.Array, valid: jax.Array, plan: ReadPlan = LOOP) -> CacheView:
        """Make the view for a call.

        Args:
          slots: int32 [B], the slot of each row.
          positions, valid: see `CacheView`.
        """
        return CacheView(
            tables=tuple(jnp.take(table, slots, axis=0, mode="clip") for table in self.tables),
            positions=positions,
            valid=valid,
            last=jnp.max(jnp.where(valid, positions, -1), axis=1),
            kinds=self.kinds,
            plan=plan,
        )

    def with_tables(self, tables: Sequence[jax.Array]) -> KVCache:
        """Replace the tables.

        Args:
          tables: int32 [slots, C] for each kind of layer. A block that a slot will write to must not be shared: the
            block of its next token and all after it and, in a ring that wraps, those before it as well.
        """
        return replace(self, tables=tuple(tables))


def stored_head_dim(config: MistralConfig) -> int:
    """H of the cache: the model's H, zero-padded where products need it."""
    return storable_axis(config.head_dim)


def own_blocks(config: MistralConfig, *, slots: int, length: int, chunk: int) -> list[int]:
    """For each kind of table, the blocks that fill those of all slots, and `SPARE`."""
    return [1 + slots * kind.blocks for kind in table_kinds(config, length=length, chunk=chunk)[0]]


def block_bytes(config: MistralConfig, *, length: int, chunk: int, dtype: jax.typing.DTypeLike) -> list[int]:
    """For each kind of table, the bytes of one block in all its layers."""
    kinds, of_layers = table_kinds(config, length=length, chunk=chunk)
    one = 2 * BLOCK * config.num_kv_heads * stored_head_dim(config) * np.dtype(dtype).itemsize
    return [one * of_layers.count(kind) for kind in range(len(kinds))]


def cache_bytes(
    config: MistralConfig,
    *,
    slots: int,
    length: int,
    chunk: int,
    dtype: jax.typing.DTypeLike,
    counts: Sequence[int] | None = None,
) -> int:
    """`KVCache.nbytes` of a cache allocated with these arguments."""
    counts = own_blocks(config, slots=slots, length=length, chunk=chunk) if counts is None else counts
    sizes = block_bytes(config, length=length, chunk=chunk, dtype=dtype)
    return sum(count * size for count, size in zip(counts, sizes, strict=True))


@partial(jax.jit, inline=True)
def write(
    layer: LayerCache,
    keys: jax.Array,
    values: jax.Array,
    *,
    table: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
) -> LayerCache:
    """Store the keys and values of T tokens for B rows.

    Args:
      keys, values: [B, T, K, H], T at most the `chunk` of the allocation, H the model's.
      table: int32 [B, C]. Blocks that are written to must belong to one row only.
      positions: int32 [B, T].
      valid: bool [B, T]; other tokens (padding, idle rows) are not stored.
    """
    spare = ((0, 0), (0, 0), (0, 0), (0, layer.head_dim - keys.shape[-1]))
    keys, values = jnp.pad(keys, spare), jnp.pad(values, spare)
    block, offset = places(layer, table=table, positions=positions, valid=valid)
    how: Any = {"mode": "drop", "wrap_negative_indices": False}
    return LayerCache(
        layer.keys.at[block, :, offset].set(keys.astype(layer.keys.dtype), **how),
        layer.values.at[block, :, :, offset].set(values.astype(layer.values.dtype), **how),
    )


def places(
    layer: LayerCache, *, table: jax.Array, positions: jax.Array, valid: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Where tokens are stored: their blocks in the pool, out of bounds for those that are not valid or have none, and
    their indices in these; int32 [B, T] both. Args: see `write`."""
    # Nothing here is negative, so that C's division does: jnp's adds half a dozen operations to each.
    index = lax.rem(positions, jnp.int32(table.shape[1] * layer.block))
    block = _entries(table, lax.div(index, jnp.int32(layer.block)))
    block = jnp.where(valid & (block != SPARE), block, layer.blocks)
    return block, lax.rem(index, jnp.int32(layer.block))


def read_block(layer: LayerCache, table: jax.Array, number: jax.Array | int) -> tuple[jax.Array, jax.Array]:
    """Keys [B, K, J, H] and values [B, K, H, J] of block `number` of each row."""
    blocks = lax.dynamic_index_in_dim(table, number, axis=1, keepdims=False, allow_negative_indices=False)  # [B]
    if blocks.shape[0] == 1:
        return (
            lax.dynamic_slice_in_dim(layer.keys, blocks[0], 1, allow_negative_indices=False),
            lax.dynamic_slice_in_dim(layer.values, blocks[0], 1, allow_negative_indices=False),
        )
    return _blocks(layer.keys, blocks), _blocks(layer.values, blocks)


def read_blocks(layer: LayerCache, table: jax.Array, count: int) -> tuple[jax.Array, jax.Array]:
    """Keys [B, C, K, J, H] and values [B, C, K, H, J] of the first `count` blocks of each row."""
    blocks = table[:, :count]
    return _blocks(layer.keys, blocks), _blocks(layer.values, blocks)


# Tables name blocks of the pool and nothing else, so that their indices need no operations that would bound them.


def _blocks(pool: jax.Array, blocks: jax.Array) -> jax.Array:
    return pool.at[blocks].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _entries(table: jax.Array, index: jax.Array) -> jax.Array:
    """int32 [B, T]: entry `index` [B, T] of each row's table."""
    row = lax.broadcasted_iota(index.dtype, index.shape, 0)
    return table.at[row, index].get(mode="promise_in_bounds", wrap_negative_indices=False)


def key_positions(index: jax.Array, last: jax.Array, S: int) -> jax.Array:
    """Position held at each cache index; negative where nothing was written yet.

    Args:
      index: int32 [J], cache indices.
      last: int32 [B], the last position written in each row; negative for an empty row.
    Returns: int32 [B, J]: the greatest p <= last with p % S == index.
    """
    last = jnp.asarray(last)[:, None]
    # The position at index 0, in the current round through the ring. C's remainder: of -1 it is -1.
    first = last - lax.rem(last, jnp.asarray(S, last.dtype))
    return jnp.where(first + index > last, first + index - S, first + index)
