"""Moving what sequences hold: blocks within the cache, and blocks and rows to the host and back.

Pure functions, traced inside the runner's programs. Bits are copied; nothing is computed.

Axis letters: B slots, P blocks of a pool, J tokens of a block, L layers, K kv heads, H head dim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from mistral_jax.model.kv_cache import KVCache, LayerCache
from mistral_jax.model.table_kinds import SPARE
from mistral_jax.runtime.mixing import Caches
from mistral_jax.runtime.step import Rows

Block = tuple[jax.Array, jax.Array]
"""Keys [L, K, J, H] and values [L, K, H, J] of a block of each layer."""


@dataclass(frozen=True, slots=True)
class TakenOut:
    """A sequence that was taken out of its slot, on the host. Made by `Runner.take_out`."""

    row: Any
    """Its row, a pytree."""
    entries: tuple[int, ...]
    """The entries of its tables, of any kind, that had blocks."""
    blocks: tuple[Any, ...]
    """For each of them, its `Block` in each cache."""

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in jax.tree.leaves((self.row, self.blocks)))


def copy_block(caches: Caches, sources: jax.Array, targets: jax.Array) -> Caches:
    """Copy a block of each layer.

    Args:
      caches: donated.
      sources, targets: int32 [kinds], for each kind of table; a target of `SPARE` copies nothing.
    """

    def one(layer: LayerCache, kind: int) -> LayerCache:
        source, target = sources[kind], _target(targets[kind], layer)
        return LayerCache(
            _set(layer.keys, target, layer.keys[source]), _set(layer.values, target, layer.values[source])
        )

    return _each(caches, lambda cache: _with_layers(cache, [one(*each) for each in _layers(cache)]))


def take_block(caches: Caches, blocks: jax.Array) -> tuple[Block, Block | None]:
    """A block of each layer, of both caches.

    Args:
      blocks: int32 [kinds], for each kind of table.
    """

    def of(cache: KVCache) -> Block:
        found = [(layer.keys[blocks[kind]], layer.values[blocks[kind]]) for layer, kind in _layers(cache)]
        return jnp.stack([keys for keys, _ in found]), jnp.stack([values for _, values in found])

    return of(caches.scaled), None if caches.scaling is None else of(caches.scaling)


def put_block(caches: Caches, blocks: jax.Array, taken: tuple[Block, Block | None]) -> Caches:
    """Put back what `take_block` returned. `caches` is donated; nothing is put into `SPARE`."""

    def into(cache: KVCache, block: Block) -> KVCache:
        layers = [
            LayerCache(
                _set(layer.keys, _target(blocks[kind], layer), block[0][number]),
                _set(layer.values, _target(blocks[kind], layer), block[1][number]),
            )
            for number, (layer, kind) in enumerate(_layers(cache))
        ]
        return _with_layers(cache, layers)

    scaled, scaling = taken
    return Caches(
        into(caches.scaled, scaled),
        None if caches.scaling is None or scaling is None else into(caches.scaling, scaling),
    )


def take_row(rows: Rows, slot: jax.Array) -> Any:
    """The row of a slot: a pytree of the arrays of `rows` without their axis of slots."""
    return jax.tree.map(lambda x: x[slot], rows)


def put_row(rows: Rows, slot: jax.Array, row: Any) -> Rows:
    """Put back what `take_row` returned, into any slot; out of bounds: nowhere. `rows` is donated."""
    return jax.tree.map(lambda x, own: x.at[slot].set(own, mode="drop"), rows, row)


def _layers(cache: KVCache) -> list[tuple[LayerCache, int]]:
    return list(zip(cache.layers, cache.kinds, strict=True))


def _with_layers(cache: KVCache, layers: list[LayerCache]) -> KVCache:
    return replace(cache, layers=tuple(layers))


def _each(caches: Caches, function: Any) -> Caches:
    return Caches(function(caches.scaled), None if caches.scaling is None else function(caches.scaling))


def _target(block: jax.Array, layer: LayerCache) -> jax.Array:
    """Out of bounds for the spare block."""
    return jnp.where(block == SPARE, layer.blocks, block)


def _set(pool: jax.Array, block: jax.Array, content: jax.Array) -> jax.Array:
    return pool.at[block].set(content, mode="drop", wrap_negative_indices=False)
