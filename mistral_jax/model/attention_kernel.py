"""Attention over the block pool as one kernel for NVIDIA GPUs, in Pallas for Triton.

The kernel follows a row's table and reads keys and values where they lie in the pool: nothing is gathered, and a row
reads the blocks that its queries see and no more. One compiled program serves all lengths.

- Decode steps, and runs of a few tokens, divide a row's blocks into pieces of `_PIECE_BLOCKS` that run at the same time
  (Flash-Decoding); a second kernel merges the partial results of the pieces.
- Prefill runs through all blocks of a tile of queries in one go (FlashAttention-2, arXiv 2307.08691).

Pieces have one fixed length and are merged in one fixed order, each row has its own instances of the kernel, and what a
query does not see changes no bit of its result. So a query's result depends on itself and the keys that it sees alone:
not on other rows, and in steps of up to `_MOST_DIVIDED_TOKENS` tokens not on their number.

Axis letters: B rows, T query tokens, N heads, K kv heads, G = N/K, H head dim, J tokens of a block, C blocks of a
table, S = C * J; M rows of a tile of queries.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mistral_jax.model.kv_cache import LayerCache
from mistral_jax.quant.gpu_kernels import run_kernel, tile_dot, triton

_MASKED = -1e30
"""In place of minus infinity, see `mistral_jax.model.attention`."""

_PIECE_BLOCKS = 2
"""Blocks that one instance of the kernel reads in a decode step; more for long tables, as partial results take
memory."""
MOST_PIECES = 32
"""Most pieces of a row; as many for one query as for several, so that a query's result does not depend on how many run
with it."""

_MOST_DIVIDED_TOKENS = 8
"""Queries of a row up to which its blocks are divided into pieces; with more there are enough tiles of queries."""

_TILE_ROWS = 64
"""Most rows of a tile: tokens times the heads of a group."""

_FEW_TILE_ROWS = 32
"""The same where blocks are divided into pieces. Hopper multiplies 64 rows by other instructions than 16 or 32."""

_TILE_BYTES = 16 * 2**10
"""Most bytes of keys that are multiplied at once. Keys and values of two or three such tiles must fit into the memory
of a core, of which small GPUs have 99 KiB."""

_SMALLEST_DOT = 16
"""Fewest rows, columns and summands of a product on tensor cores."""


class _Shape(NamedTuple):
    """Static sizes of one call."""

    tokens: int
    """T"""
    group: int
    """G"""
    head_dim: int
    """H of the queries."""
    blocks: int
    """C"""
    block: int
    """J"""
    tile_tokens: int
    tile_group: int
    """At least G: rows beyond it are computed in vain, where the tensor cores take no fewer."""
    tile_head_dim: int
    """At least H, a power of two."""
    tile_keys: int
    window: int | None

    @property
    def rows(self) -> int:
        """M"""
        return self.tile_tokens * self.tile_group

    @property
    def length(self) -> int:
        """S"""
        return self.blocks * self.block

    @property
    def piece(self) -> int:
        """Blocks of a piece."""
        return max(_PIECE_BLOCKS, pl.cdiv(self.blocks, MOST_PIECES))

    @property
    def tiles(self) -> int:
        """Tiles of a row's queries."""
        return pl.cdiv(self.tokens, self.tile_tokens)


def _shape(queries: jax.Array, layer: LayerCache, table: jax.Array, window: int | None) -> _Shape:
    _, T, N, H = queries.shape
    G = N // layer.keys.shape[1]
    group = pl.next_power_of_2(G)
    rows = _FEW_TILE_ROWS if T <= _MOST_DIVIDED_TOKENS else _TILE_ROWS
    tokens = min(pl.next_power_of_2(T), max(1, rows // group))
    group = max(group, _SMALLEST_DOT // tokens)
    wide = max(pl.next_power_of_2(H), _SMALLEST_DOT)
    keys = _TILE_BYTES // (wide * layer.keys.dtype.itemsize)
    tile_keys = max(_SMALLEST_DOT, min(layer.block, 1 << int(math.log2(max(keys, 1)))))
    return _Shape(T, G, H, table.shape[1], layer.block, tokens, group, wide, tile_keys, window)


@partial(jax.jit, static_argnames="window", inline=True)
def attend(
    queries: jax.Array,
    layer: LayerCache,
    *,
    table: jax.Array,
    positions: jax.Array,
    last: jax.Array,
    window: int | None,
) -> jax.Array:
    """Attention of T queries in each of B rows to the keys and values in their blocks.

    Args: see `mistral_jax.model.attention.attend`.
    Returns: [B, T, N, H] in the type of the queries.
    """
    run = partial(_attend, shape=_shape(queries, layer, table, window), dtype=queries.dtype)
    queries = queries.astype(layer.keys.dtype)
    return run_kernel(run, _Inputs(table, positions[:, 0], last, queries, layer.keys, layer.values))


class _Inputs(NamedTuple):
    """What the kernels read: arrays, inside a kernel their references."""

    table: Any
    """int32 [B, C]"""
    first: Any
    """int32 [B]: the position of each row's first query."""
    last: Any
    """int32 [B]"""
    queries: Any
    """[B, T, N, H]"""
    keys: Any
    values: Any


def _attend(inputs: _Inputs, *, shape: _Shape, dtype: jnp.dtype, interpret: bool) -> jax.Array:
    B, T, N, H = inputs.queries.shape
    K = inputs.keys.shape[1]
    call: Any = partial(pl.pallas_call, interpret=interpret)
    if T > _MOST_DIVIDED_TOKENS:
        return call(
            partial(_whole_kernel, shape=shape),
            out_shape=jax.ShapeDtypeStruct((B, T, N, H), dtype),
            grid=(shape.tiles, K, B),
            compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
            name="attention",
        )(*inputs)
    pieces = pl.cdiv(shape.blocks, shape.piece)
    partials = call(
        partial(_piece_kernel, shape=shape),
        out_shape=[
            jax.ShapeDtypeStruct((B, T, N, pieces, H), jnp.float32),
            jax.ShapeDtypeStruct((B, T, N, pieces), jnp.float32),
            jax.ShapeDtypeStruct((B, T, N, pieces), jnp.float32),
        ],
        grid=(pieces, K * shape.tiles, B),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        name="attention_pieces",
    )(*inputs)
    return call(
        partial(_merge_kernel, shape=shape),
        out_shape=jax.ShapeDtypeStruct((B, T, N, H), dtype),
        grid=(N, T, B),
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=1),
        name="attention_merge",
    )(inputs.first, inputs.last, *partials)


class _Reach(NamedTuple):
    """What a tile of queries of one row sees. Scalars on the device."""

    first: jax.Array
    """Position of the row's first query."""
    last: jax.Array
    """The last position written in the row; negative: the row is idle."""
    start: jax.Array
    """First block that the tile may see."""
    stop: jax.Array
    """End of the blocks that it may see."""


def _reach(first_ref: Any, last_ref: Any, row: Any, token: Any, shape: _Shape) -> _Reach:
    """Of the `tile_tokens` queries from the row's query number `token` on."""
    first, last = first_ref[row], last_ref[row]
    J, C = shape.block, shape.blocks
    lowest = first + token
    highest = lowest + min(shape.tile_tokens, shape.tokens) - 1
    # C's division of a negative number would round up; an idle row has no blocks.
    used = jnp.where(last < 0, 0, lax.div(jnp.minimum(jnp.maximum(last, 0), highest), J) + 1)
    wrapped = last >= shape.length
    start = jnp.int32(0)
    if shape.window is not None:
        start = jnp.where(wrapped, 0, lax.div(jnp.maximum(lowest - shape.window + 1, 0), J))
    return _Reach(first, last, start, jnp.where(wrapped, C, jnp.minimum(used, C)))


class _Tile(NamedTuple):
    """A tile of queries of one row, in an array [B, T, N, H]."""

    row: Any
    head: Any
    """The kv head."""
    token: Any
    """Number of the first query."""
    place: tuple[Any, Any, Any, Any]
    exists: jax.Array
    """bool [tile_tokens, tile_group, tile_head_dim]: which of its elements there are."""

    @classmethod
    def of(cls, row: Any, head: Any, token: Any, shape: _Shape) -> _Tile:
        sizes = (shape.tile_tokens, shape.tile_group, shape.tile_head_dim)
        t, g, h = (lax.broadcasted_iota(jnp.int32, sizes, axis) for axis in range(3))
        exists = (token + t < shape.tokens) & (g < shape.group) & (h < shape.head_dim)
        return cls(row, head, token, (row, token + t, head * shape.group + g, h), exists)


def _partial_result(
    refs: _Inputs, tile: _Tile, reach: _Reach, start: Any, stop: Any, shape: _Shape
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Attention of a tile of queries to the blocks from `start` to `stop` of its row's table.

    Returns: weighted values [M, H], maximum [M], sum [M], all float32.
    """
    row, head, token = tile.row, tile.head, tile.token
    queries = triton.load(refs.queries.at[tile.place], mask=tile.exists, other=0).reshape(shape.rows, -1)
    M, wide, keys = shape.rows, shape.tile_head_dim, shape.tile_keys
    per_block = shape.block // keys
    positions = reach.first + token + lax.div(lax.broadcasted_iota(jnp.int32, (M, 1), 0), shape.tile_group)
    # The position at index 0, in the current round through the table.
    origin = reach.last - lax.rem(reach.last, shape.length)

    def step(number: jax.Array, state: tuple[jax.Array, ...], *, ragged: bool) -> tuple[jax.Array, ...]:
        weighted, high, total = state
        index = number * keys + lax.broadcasted_iota(jnp.int32, (1, keys), 1)
        held = jnp.where(origin + index > reach.last, origin + index - shape.length, origin + index)
        block = refs.table[row, lax.div(number, per_block)]
        within, width = pl.ds(lax.rem(number, per_block) * keys, keys), pl.ds(0, wide)
        k = _load(refs.keys, (block, head, within, width), axis=1)
        scores = tile_dot(queries, k)  # [M, J]
        seen = (held >= 0) & (held <= positions)
        if shape.window is not None:
            seen = seen & (positions - held < shape.window)
        scores = jnp.where(seen, scores, _MASKED)
        new_high = jnp.maximum(high, jnp.max(scores, axis=1))
        # If everything is masked, the maximum is `_MASKED` itself. The larger lower bound makes the weights zeros.
        weights = jnp.exp(scores - jnp.maximum(new_high, _MASKED / 10)[:, None])
        v = _load(refs.values, (block, head, width, within), axis=0)
        if ragged:
            # What the block's previous owner left may be NaN, which survives a product with zero. In a ring, what is
            # older than any query sees may be from another sequence, too.
            exists = held >= 0
            if shape.window is not None:
                exists = exists & (reach.first + token - held < shape.window)
            v = jnp.where(exists, v, jnp.zeros((), v.dtype))
        weights = weights.astype(v.dtype)
        scale = jnp.exp(high - new_high)
        total = total * scale + jnp.sum(weights.astype(jnp.float32), axis=1)
        return weighted * scale[:, None] + tile_dot(weights, v), new_high, total

    # Blocks that hold nothing else come first.
    in_ring = shape.blocks if shape.window is None else 0
    whole = jnp.where(reach.last >= shape.length, in_ring, lax.div(reach.last + 1, shape.block))
    middle = jnp.clip(whole, start, stop)
    state = (jnp.zeros((M, wide), jnp.float32), jnp.full((M,), _MASKED, jnp.float32), jnp.zeros((M,), jnp.float32))
    state = lax.fori_loop(start * per_block, middle * per_block, partial(step, ragged=False), state)
    weighted, high, total = lax.fori_loop(middle * per_block, stop * per_block, partial(step, ragged=True), state)
    return weighted, high, total


def _load(ref: Any, at: tuple[Any, Any, Any, Any], *, axis: int) -> jax.Array:
    """A tile of a pool, whose axis `axis` is as wide as a power of two, with zeros beyond the pool's width."""
    stored, width = ref.shape[2 + axis], at[2 + axis].size
    if stored == width:
        return triton.load(ref.at[at])
    sizes = (at[2].size, at[3].size)
    rows, columns = (at[2 + i].start + lax.broadcasted_iota(jnp.int32, sizes, i) for i in range(2))
    mask = (rows, columns)[axis] < stored
    return triton.load(ref.at[at[0], at[1], rows, columns], mask=mask, other=0)


def _whole_kernel(*refs: Any, shape: _Shape) -> None:
    *inputs, out_ref = refs
    number, head, row = (pl.program_id(axis) for axis in range(3))
    tile = _Tile.of(row, head, number * shape.tile_tokens, shape)
    found = _Inputs(*inputs)
    reach = _reach(found.first, found.last, row, tile.token, shape)
    weighted, _, total = _partial_result(found, tile, reach, reach.start, reach.stop, shape)
    out = weighted / jnp.where(total == 0, 1.0, total)[:, None]
    triton.store(out_ref.at[tile.place], out.reshape(tile.exists.shape).astype(out_ref.dtype), mask=tile.exists)


def _piece_kernel(*refs: Any, shape: _Shape) -> None:
    *inputs, weighted_ref, high_ref, total_ref = refs
    piece, number, row = (pl.program_id(axis) for axis in range(3))
    head, token = lax.div(number, shape.tiles), lax.rem(number, shape.tiles) * shape.tile_tokens
    found = _Inputs(*inputs)
    reach = _reach(found.first, found.last, row, token, shape)
    start = jnp.maximum(reach.start, piece * shape.piece)
    stop = jnp.minimum(reach.stop, (piece + 1) * shape.piece)

    @pl.when(start < stop)
    def _() -> None:
        tile = _Tile.of(row, head, token, shape)
        weighted, high, total = _partial_result(found, tile, reach, start, stop, shape)
        *these, h = tile.place
        triton.store(weighted_ref.at[*these, piece, h], weighted.reshape(tile.exists.shape), mask=tile.exists)
        t, g = (lax.broadcasted_iota(jnp.int32, tile.exists.shape[:2], axis) for axis in range(2))
        mask = (token + t < shape.tokens) & (g < shape.group)
        for ref, x in ((high_ref, high), (total_ref, total)):
            triton.store(ref.at[row, token + t, head * shape.group + g, piece], x.reshape(mask.shape), mask=mask)


_MERGED_AT_ONCE = 32
"""Pieces that are merged at once; more are merged group by group."""


def _merge_kernel(
    first_ref: Any, last_ref: Any, weighted_ref: Any, high_ref: Any, total_ref: Any, out_ref: Any, *, shape: _Shape
) -> None:
    head, token, row = (pl.program_id(axis) for axis in range(3))
    # What the tile of this token sees, as its partial results are of that.
    reach = _reach(first_ref, last_ref, row, lax.div(token, shape.tile_tokens) * shape.tile_tokens, shape)
    first_piece = lax.div(reach.start, shape.piece)
    end = lax.div(reach.stop + shape.piece - 1, shape.piece)
    width = lax.broadcasted_iota(jnp.int32, (shape.tile_head_dim,), 0)
    exists = width < shape.head_dim

    def step(group: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        weighted, high, total = state
        number = group * _MERGED_AT_ONCE + lax.broadcasted_iota(jnp.int32, (_MERGED_AT_ONCE,), 0)
        used = (number >= first_piece) & (number < end)
        highs = triton.load(high_ref.at[row, token, head, number], mask=used, other=_MASKED)
        totals = triton.load(total_ref.at[row, token, head, number], mask=used, other=0)
        at = (row, token, head, number[:, None], width[None])
        values = triton.load(weighted_ref.at[at], mask=used[:, None] & exists[None], other=0)
        new_high = jnp.maximum(high, jnp.max(highs))
        scales = jnp.exp(highs - jnp.maximum(new_high, _MASKED / 10))
        scale = jnp.exp(high - new_high)
        total = total * scale + jnp.sum(totals * scales)
        return weighted * scale + jnp.sum(values * scales[:, None], axis=0), new_high, total

    state = (jnp.zeros((shape.tile_head_dim,), jnp.float32), jnp.float32(_MASKED), jnp.float32(0))
    groups = lax.div(end + _MERGED_AT_ONCE - 1, _MERGED_AT_ONCE)
    weighted, _, total = lax.fori_loop(lax.div(first_piece, _MERGED_AT_ONCE), groups, step, state)
    out = weighted / jnp.where(total == 0, 1.0, total)
    triton.store(out_ref.at[row, token, head, width], out.astype(out_ref.dtype), mask=exists)
