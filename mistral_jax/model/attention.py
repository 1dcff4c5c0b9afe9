"""Grouped-query attention over the KV cache, in key blocks of one fixed length.

Every query attends to the blocks of its row. Each block gives a partial result (maximum, sum, weighted values), and
partial results are merged one after another. A fully masked block leaves the merged result unchanged, bit for bit. So a
row's result does not depend on how many blocks *other* rows make the program read, and nothing is padded or masked by
bucket. On a CPU the loop's result does not depend on the number of rows or tokens either:
`tests/mistral_jax/runtime/test_bit_identity.py`.

Three forms do the same arithmetic:
- `loop`: a loop over the blocks in use at run time. One compiled program serves all lengths. For CPUs.
- `kernel`: one kernel that follows the tables, in `mistral_jax.model.attention_kernel`. One compiled program serves all
  lengths. For NVIDIA GPUs.
- `parallel`: the first `ReadPlan.blocks` blocks at once (a static number, one program for each length bucket). For
  devices without the kernel, on which a loop of unknown length returns to the host in each iteration. It copies what it
  reads.

Axis letters: B rows, T query tokens, N heads, K kv heads, G = N/K, H head dim, J keys of one block, C blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mistral_jax.model import attention_kernel, store_kernel
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import (
    BLOCK,
    KERNEL,
    LOOP,
    LayerCache,
    ReadPlan,
    key_positions,
    read_block,
    read_blocks,
    stored_head_dim,
)
from mistral_jax.quant.dot import batched_dot, precision_of, rounded_product, row_sum
from mistral_jax.quant.gpu_kernels import agrees
from mistral_jax.quant.placement import Placement

# In place of minus infinity: finite, so that a block without any visible key gives 0 and never NaN.
_MASKED = -1e30

# Queries of a chunk that run through the loop together. More would exceed the processor's cache, and the first queries
# would read blocks that only the last ones see.
_PIECE = 128

Visible = Callable[[jax.Array], tuple[jax.Array, jax.Array]]
"""From cache indices [J]: a bias for each query's scores, float32 [B, T, J] (0, or `_MASKED` where it does not see the
key), and which indices hold a token of the row, bool [B, J]."""

Partial = tuple[jax.Array, jax.Array, jax.Array]
"""Maximum [B, K, M], sum [B, K, M], weighted values [B, K, M, H]; M = G * T."""


# Traced once for all layers of one shape; inlined, so the program is the same as if each layer were traced.
@partial(jax.jit, static_argnames=("window", "plan"), inline=True)
def attend(
    queries: jax.Array,
    layer: LayerCache,
    *,
    table: jax.Array,
    positions: jax.Array,
    last: jax.Array,
    window: int | None,
    plan: ReadPlan = LOOP,
) -> jax.Array:
    """Attention of T queries in each of B rows to the keys and values in their blocks.

    Args:
      queries: [B, T, N, H], rotated and already multiplied by the softmax scale.
      layer: the pool; the keys and values of these queries' tokens are already written.
      table: int32 [B, C], the blocks of each row.
      positions: int32 [B, T] of the queries.
      last: int32 [B], the last position written in each row; negative for rows to skip, which give zeros.
      window: sliding window of the layer, or None.
      plan: static.
    Returns: [B, T, N, H] in float32; by the kernel in the type of the queries.
    """
    if plan.kernel:
        return attention_kernel.attend(queries, layer, table=table, positions=positions, last=last, window=window)
    B, T, N, H = queries.shape
    if plan == LOOP and T > _PIECE:
        pieces = [
            attend(
                queries[:, start : start + _PIECE],
                layer,
                table=table,
                positions=positions[:, start : start + _PIECE],
                last=last,
                window=window,
            )
            for start in range(0, T, _PIECE)
        ]
        return jnp.concatenate(pieces, axis=1)
    K, J, C = layer.keys.shape[1], layer.block, table.shape[1]
    G = N // K
    grouped = queries.reshape(B, T, K, G, H).transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, H)
    M = G * T
    # A single query (G = T = 1) is padded to two rows: with two or more rows products have the same bits.
    spare = ((0, 0), (0, 0), (0, 1 if M == 1 else 0), (0, layer.head_dim - H))
    grouped = jnp.pad(grouped.astype(layer.keys.dtype), spare)

    def visible(index: jax.Array) -> tuple[jax.Array, jax.Array]:
        held = key_positions(index, last, C * J)
        seen = (held[:, None] >= 0) & (held[:, None] <= positions[:, :, None])
        exists = held >= 0
        if window is not None:
            seen = seen & (positions[:, :, None] - held[:, None] < window)
            # In a ring, what is older may be from another sequence.
            exists = exists & (positions[:, :1] - held < window)
        # The barrier makes XLA compute it once, not for every head.
        return lax.optimization_barrier(jnp.where(seen, 0.0, _MASKED)), exists

    if plan == LOOP:
        # Read only as far as the last query sees, even if later tokens are written.
        longest = jnp.max(jnp.minimum(last, positions[:, -1]))
        in_use = jnp.minimum(lax.div(longest + J, jnp.int32(J)), C)
        merged = _loop(grouped, layer, table=table, in_use=in_use, visible=visible)
    else:
        merged = _parallel(grouped, layer, table=table, count=min(plan.blocks, C), visible=visible)
    _, total, weighted = merged
    out = weighted / jnp.where(total == 0, 1.0, total)[..., None]  # [B, K, M, H]
    return out[:, :, :M, :H].reshape(B, K, G, T, H).transpose(0, 3, 1, 2, 4).reshape(B, T, N, H)


@lru_cache(maxsize=16)
def kernel_works(placement: Placement, config: MistralConfig, dtype: jax.typing.DTypeLike) -> bool:
    """Whether a model's attention runs by kernels: one GPU holds the model, and there they give what the plain forms
    give. Compiles and runs small instances, which takes seconds where no compiled program is kept."""
    if not placement.is_one_gpu:
        return False
    rng = np.random.default_rng(0)
    N, K, H = config.num_heads, config.num_kv_heads, stored_head_dim(config)
    C, window = 5, 3 * BLOCK
    pools = ((2 * C, K, BLOCK, H), (2 * C, K, H, BLOCK))
    table = np.arange(2 * C, dtype=np.int32).reshape(C, 2).T
    # Once round the ring, and in the first block.
    last = np.array([6 * BLOCK + 40, 70], np.int32)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.dtype(dtype))

    def form(plan: ReadPlan, queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        T = queries.shape[1]
        where = {"table": jnp.asarray(table), "positions": jnp.asarray(last)[:, None] - T + 1 + jnp.arange(T)}
        seen = {"last": jnp.asarray(last), "window": window}
        return attend(queries, LayerCache(keys, values), **where, **seen, plan=plan).astype(queries.dtype)

    def agrees_for(T: int) -> bool:
        queries = normal(2, T, N, config.head_dim) * np.asarray(H**-0.5, np.dtype(dtype))
        arguments = (queries, *(normal(*pool) for pool in pools))
        forms = (partial(form, KERNEL), partial(form, ReadPlan(C)))
        return agrees("attention", *forms, arguments, placement=placement, dtype=dtype)

    # A decode step, a run of tokens, a chunk.
    return all(agrees_for(T) for T in (1, 8, 64)) and store_kernel.kernel_works(placement, config, dtype)


def _loop(grouped: jax.Array, layer: LayerCache, *, table: jax.Array, in_use: jax.Array, visible: Visible) -> Partial:
    B, K, M, H = grouped.shape

    def body(number: jax.Array, merged: Partial) -> Partial:
        keys, values = read_block(layer, table, number)
        bias, held = visible(number * layer.block + jnp.arange(layer.block))
        scores = batched_dot(grouped, _only(held[:, None, :, None], keys))  # [B, K, M, J]
        weights, high, total = _softmax_parts(scores, bias, values.dtype)
        weighted = batched_dot(weights, _only(held[:, None, None, :], values))  # [B, K, M, H]
        return _merge(merged, (high, total, weighted))

    return lax.fori_loop(0, in_use, body, _nothing(B, K, M, H))


def _parallel(grouped: jax.Array, layer: LayerCache, *, table: jax.Array, count: int, visible: Visible) -> Partial:
    B, K, M, H = grouped.shape
    keys, values = read_blocks(layer, table, count)
    bias, held = visible(jnp.arange(count * layer.block))
    held = held.reshape(B, count, 1, layer.block)
    exact = precision_of(keys)
    # Blocks are an axis of the batch in both products, as they are in the pool: no other order of the axes would let a
    # GPU multiply what was gathered without transposing it first.
    queries = jnp.broadcast_to(grouped[:, None], (B, count, K, M, H))
    keys = _only(held[..., None], keys)
    scores = jnp.einsum("bckmh,bckjh->bckmj", queries, keys, precision=exact, preferred_element_type=jnp.float32)
    bias = bias.reshape(B, -1, count, layer.block).transpose(0, 2, 1, 3)
    parts = _softmax_parts(scores.reshape(B * count, K, M, -1), bias.reshape(B * count, -1, layer.block), values.dtype)
    weights, high, total = (x.reshape(B, count, *x.shape[1:]) for x in parts)
    values = _only(held[:, :, :, None], values)
    weighted = jnp.einsum("bckmj,bckhj->bckmh", weights, values, precision=exact, preferred_element_type=jnp.float32)
    merged = _nothing(B, K, M, H)
    for c in range(count):
        merged = _merge(merged, (high[:, c], total[:, c], weighted[:, c]))
    return merged


def _only(held: jax.Array, x: jax.Array) -> jax.Array:
    """Zero what the slot's previous sequence left: masking adds and multiplies, and a NaN survives both."""
    return jnp.where(held, x, jnp.zeros((), x.dtype))


def _softmax_parts(
    scores: jax.Array, bias: jax.Array, dtype: jax.typing.DTypeLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Unnormalised weights of a block, rounded to `dtype`; the maximum score and the sum of weights over the last axis.

    Args:
      scores: float32 [B, K, M, J], M = heads of the group * T.
      bias: float32 [B, T, J].
    """
    B, K, M, J = scores.shape
    T = bias.shape[1]
    scores = (scores.reshape(B, K, M // T, T, J) + bias[:, None, None]).reshape(scores.shape)
    # The barrier keeps XLA's CPU backend from fusing maximum and exponential: from 4096 scores on it would, and with
    # another exp.
    high = lax.optimization_barrier(jnp.max(scores, axis=-1))
    # If everything is masked, the maximum is `_MASKED` itself. The larger lower bound makes the weights exact zeros.
    weights = jnp.exp(scores - jnp.maximum(high, _MASKED / 10)[..., None]).astype(dtype)
    return weights, high, row_sum(weights)


def _nothing(B: int, K: int, M: int, H: int) -> Partial:
    return jnp.full((B, K, M), _MASKED), jnp.zeros((B, K, M)), jnp.zeros((B, K, M, H))


def _merge(a: Partial, b: Partial) -> Partial:
    """Merge two partial results. If `b` is fully masked, the result is `a`, bit for bit.

    The part with the greater maximum is kept, and the other is scaled to it.
    """
    ahead = a[0] >= b[0]
    scale = jnp.exp(-jnp.abs(a[0] - b[0]))

    def join(x: jax.Array, y: jax.Array, ahead: jax.Array, scale: jax.Array) -> jax.Array:
        return jnp.where(ahead, x, y) + rounded_product(jnp.where(ahead, y, x), scale)

    weighted = join(a[2], b[2], ahead[..., None], scale[..., None])
    return jnp.maximum(a[0], b[0]), join(a[1], b[1], ahead, scale), weighted
