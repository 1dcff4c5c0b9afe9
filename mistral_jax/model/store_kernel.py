"""Rotating queries and keys, and storing keys and values in the block pool, as one kernel for NVIDIA GPUs.

XLA makes four kernels of it: queries, keys and values each have a form and a place of their own, and a scatter is never
fused with another. An instance of this kernel does one head of a few tokens; the arithmetic is that of
`mistral_jax.model.rope.rotate`.

Axis letters: B rows, T tokens, N query heads, K kv heads, H head dim, J tokens of a block.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import LayerCache, places, stored_head_dim, write
from mistral_jax.model.rope import Heads, Positions
from mistral_jax.model.table_kinds import BLOCK
from mistral_jax.quant.dot import rounded_product
from mistral_jax.quant.gpu_kernels import agrees, run_kernel, triton
from mistral_jax.quant.placement import Placement

_TILE_TOKENS = 16
"""Most tokens of one instance: values of neighbouring tokens lie side by side."""


class _Shape(NamedTuple):
    """Static sizes of one call."""

    heads: tuple[int, int]
    """N and K."""
    tokens: int
    """T"""
    head_dim: int
    """H of the model; a pool may have more, which stay zero."""
    tile: int
    """Tokens of an instance."""
    query_scale: float


@partial(jax.jit, static_argnames="dtype", inline=True)
def rotate_and_store(
    qkv: jax.Array,
    layer: LayerCache,
    at: Positions,
    *,
    dtype: jax.typing.DTypeLike,
    table: jax.Array,
    positions: jax.Array,
    valid: jax.Array,
) -> tuple[jax.Array, LayerCache]:
    """Args:
      qkv: float32 [B, T, N + 2K, H].
      layer: updated in place, where it is donated.
      dtype: static; of activations.
      table, positions, valid: see `mistral_jax.model.kv_cache.write`.

    Returns: queries [B, T, N, H] in `dtype`, rotated and scaled; and the pool with keys and values.
    """
    block, offset = places(layer, table=table, positions=positions, valid=valid)
    factors = (at.cos, at.sin) if at.temperature is None else (at.cos, at.sin, at.temperature)
    run = partial(_run, query_scale=at.query_scale, dtype=jnp.dtype(dtype))
    queries, keys, values = run_kernel(run, qkv, layer.keys, layer.values, factors, block, offset)
    return queries, LayerCache(keys, values)


def _run(
    qkv: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    factors: tuple[jax.Array, ...],
    block: jax.Array,
    offset: jax.Array,
    *,
    query_scale: float,
    dtype: jnp.dtype,
    interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    B, T, heads, H = qkv.shape
    K = keys.shape[1]
    N = heads - 2 * K
    shape = _Shape((N, K), T, H, min(_TILE_TOKENS, pl.next_power_of_2(T)), query_scale)
    inputs = (block, offset, *factors, qkv, keys, values)
    call: Any = pl.pallas_call(
        partial(_kernel, shape=shape),
        out_shape=[
            jax.ShapeDtypeStruct((B, T, N, H), dtype),
            *(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (keys, values)),
        ],
        grid=(heads, pl.cdiv(T, shape.tile), B),
        input_output_aliases={len(inputs) - 2: 1, len(inputs) - 1: 2},
        compiler_params=triton.CompilerParams(num_warps=1 if shape.tile == 1 else 4, num_stages=1),
        interpret=interpret,
        name="rotate_and_store",
    )
    return call(*inputs)


def _kernel(block_ref: Any, offset_ref: Any, cos_ref: Any, sin_ref: Any, *refs: Any, shape: _Shape) -> None:
    *temperature_refs, qkv_ref, _, _, queries_ref, keys_ref, values_ref = refs
    head, tile, row = (pl.program_id(axis) for axis in range(3))
    (N, K), half = shape.heads, shape.head_dim // 2
    sizes = (shape.tile, pl.next_power_of_2(half))
    t, h = (lax.broadcasted_iota(jnp.int32, sizes, axis) for axis in range(2))
    t = tile * shape.tile + t
    exists = (t < shape.tokens) & (h < half)
    first, second = (triton.load(qkv_ref.at[row, t, head, h + part], mask=exists, other=0) for part in (0, half))

    def rotated() -> tuple[jax.Array, jax.Array]:
        cos, sin = (triton.load(ref.at[row, t, 0, h], mask=exists, other=0) for ref in (cos_ref, sin_ref))
        return (
            rounded_product(first, cos) - rounded_product(second, sin),
            rounded_product(second, cos) + rounded_product(first, sin),
        )

    def stored_at() -> tuple[jax.Array, jax.Array, jax.Array]:
        """Block and index of each element, and which are stored."""
        block = triton.load(block_ref.at[row, t], mask=exists, other=keys_ref.shape[0])
        return block, triton.load(offset_ref.at[row, t], mask=exists, other=0), exists & (block < keys_ref.shape[0])

    @pl.when(head < N)
    def _() -> None:
        for part, x in zip((0, half), rotated(), strict=True):
            x = x * shape.query_scale
            for ref in temperature_refs:
                x = x * triton.load(ref.at[row, t, 0, 0], mask=exists, other=0)
            triton.store(queries_ref.at[row, t, head, h + part], x.astype(queries_ref.dtype), mask=exists)

    @pl.when((head >= N) & (head < N + K))
    def _() -> None:
        block, index, is_stored = stored_at()
        for part, x in zip((0, half), rotated(), strict=True):
            x = x.astype(queries_ref.dtype).astype(keys_ref.dtype)
            triton.store(keys_ref.at[block, head - N, index, h + part], x, mask=is_stored)

    @pl.when(head >= N + K)
    def _() -> None:
        block, index, is_stored = stored_at()
        for part, x in ((0, first), (half, second)):
            x = x.astype(queries_ref.dtype).astype(values_ref.dtype)
            triton.store(values_ref.at[block, head - N - K, h + part, index], x, mask=is_stored)


@lru_cache(maxsize=16)
def kernel_works(placement: Placement, config: MistralConfig, dtype: jax.typing.DTypeLike) -> bool:
    """Whether a GPU runs the kernel and gets from it what rotation and scatter apart give. Compiles and runs small
    instances."""
    rng = np.random.default_rng(0)
    N, K, H = config.num_heads, config.num_kv_heads, config.head_dim
    pools = ((5, K, BLOCK, stored_head_dim(config)), (5, K, stored_head_dim(config), BLOCK))
    kind = jnp.dtype(dtype)

    def where(T: int) -> dict[str, jax.Array]:
        # One row fills the end of a block and the start of the next; the other has a token that is not stored.
        positions = np.array([[BLOCK - T // 2 - 1], [3]], np.int32) + np.arange(T, dtype=np.int32)
        valid = np.ones((2, T), np.bool_)
        valid[1, -1] = False
        at = {"table": np.array([[2, 4], [1, 3]], np.int32), "positions": positions, "valid": valid}
        return {name: jnp.asarray(value) for name, value in at.items()}

    def joined(queries: jax.Array, layer: LayerCache) -> jax.Array:
        parts = (queries, layer.keys, layer.values)
        return jnp.concatenate([part.astype(jnp.float32).reshape(-1) for part in parts])

    def by_kernel(qkv: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        tokens = where(qkv.shape[1])
        at = Positions.of(config, tokens["positions"])
        return joined(*rotate_and_store(qkv, LayerCache(keys, values), at, dtype=kind, **tokens))

    def plain(qkv: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        tokens = where(qkv.shape[1])
        queries, *new = Heads(qkv, (N, K), kind).rotated(Positions.of(config, tokens["positions"]))
        return joined(queries, write(LayerCache(keys, values), *new, **tokens))

    def agrees_for(T: int) -> bool:
        qkv = rng.standard_normal((2, T, N + 2 * K, H)).astype(np.float32)
        arguments = (qkv, *(np.zeros(pool, kind) for pool in pools))
        return agrees("rotation and storing", by_kernel, plain, arguments, placement=placement, dtype=dtype)

    return all(agrees_for(T) for T in (1, 16))
