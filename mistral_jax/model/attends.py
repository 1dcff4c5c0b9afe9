"""What the attention of a layer sees beside its own tokens: a cache, or the rest of a whole text.

Attentions are pytrees with static settings, so that layers of one kind are traced as one function (see
`mistral_jax.model.mistral.Mistral.run`).

Axis letters: B rows, T tokens, N query heads, K kv heads, H head dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from mistral_jax.model.attention import attend
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.kv_cache import CacheView, KVCache, LayerCache, ReadPlan, write
from mistral_jax.model.rope import Heads, Positions
from mistral_jax.model.store_kernel import rotate_and_store
from mistral_jax.quant.dot import precision_of


class Attend(Protocol):
    """The attention of one layer. A pytree."""

    def __call__(self, heads: Heads, at: Positions) -> tuple[jax.Array, Any]:
        """Attend from the queries to the keys and values, and to what the layer sees beside them.

        Returns: float32 [B, T, N, H], or in the type of activations; and what is kept of the keys and values, if
          anything.
        """
        ...


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "table", "positions", "valid", "last"],
    meta_fields=["window", "plan"],
)
@dataclass(frozen=True, kw_only=True)
class CachedAttend:
    """Writes keys and values to the layer's cache, and attends to its contents. Keeps the new cache."""

    layer: LayerCache
    table: jax.Array
    positions: jax.Array
    valid: jax.Array
    last: jax.Array
    window: int | None
    plan: ReadPlan

    def __call__(self, heads: Heads, at: Positions) -> tuple[jax.Array, LayerCache]:
        if not self.plan.kernel or isinstance(heads.qkv, tuple):
            return self.attend(*heads.rotated(at))
        where = {"table": self.table, "positions": self.positions}
        queries, updated = rotate_and_store(heads.qkv, self.layer, at, dtype=heads.dtype, **where, valid=self.valid)
        return attend(queries, updated, **where, last=self.last, window=self.window, plan=self.plan), updated

    def attend(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, LayerCache]:
        """As a call, with what `Heads.rotated` returns."""
        at = {"table": self.table, "positions": self.positions}
        # Write first, then read the updated buffer: XLA no longer needs the old one and updates in place.
        updated = write(self.layer, keys, values, **at, valid=self.valid)
        return attend(queries, updated, **at, last=self.last, window=self.window, plan=self.plan), updated


def cached_attends(config: MistralConfig, cache: KVCache, view: CacheView) -> list[CachedAttend]:
    """An attention for each layer over a cache; see `KVCache.view`."""
    return [
        CachedAttend(
            layer=layer,
            table=view.table(index),
            positions=view.positions,
            valid=view.valid,
            last=view.last,
            window=window,
            plan=view.plan,
        )
        for index, (layer, window) in enumerate(zip(cache.layers, config.layer_windows, strict=True))
    ]


@partial(jax.tree_util.register_dataclass, data_fields=["positions"], meta_fields=["window"])
@dataclass(frozen=True, kw_only=True)
class CausalAttend:
    """Causal attention over a whole text, in its plain form. Keeps nothing."""

    positions: jax.Array
    """int32 [B, T]"""
    window: int | None

    def __call__(self, heads: Heads, at: Positions) -> tuple[jax.Array, None]:
        queries, keys, values = heads.rotated(at)
        B, T, N, H = queries.shape
        K = keys.shape[2]
        grouped = queries.reshape(B, T, K, N // K, H)
        exact = precision_of(keys)
        scores = jnp.einsum("btkgh,bskh->bkgts", grouped, keys, precision=exact, preferred_element_type=jnp.float32)
        distance = self.positions[:, :, None] - self.positions[:, None, :]  # [B, T, S]
        seen = (distance >= 0) if self.window is None else (distance >= 0) & (distance < self.window)
        weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -jnp.inf), axis=-1)
        weights = weights.astype(values.dtype)
        out = jnp.einsum("bkgts,bskh->btkgh", weights, values, precision=exact, preferred_element_type=jnp.float32)
        return out.reshape(B, T, N, H), None
