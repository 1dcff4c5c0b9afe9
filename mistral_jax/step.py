"""The three programs that everything runs on: admit a sequence, prefill a chunk of it, decode one token of every sequence.

They are pure functions over pytrees. State goes in, is donated, and comes out: never use a state again after a call.

- `prefill` runs a prompt's tokens but the last, in chunks, into the slot's cache. It computes no logits.
- `decode` runs the newest token of each row and samples the next. A prompt's last token is simply the first token to decode, so
  the first answer token is sampled by the same program as all others.

Axis letters: B slots, R rows of a decode step (the first R slots), T tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mistral_jax.config import MistralConfig
from mistral_jax.kv_cache import KVCache
from mistral_jax.mistral import Mistral
from mistral_jax.sampling import SamplerRows, sample


@partial(jax.tree_util.register_dataclass, data_fields=["tokens", "positions", "sampler"], meta_fields=[])
@dataclass(frozen=True)
class Rows:
    """What a decode step needs to know of each slot, beside the cache."""

    tokens: jax.Array  # int32 [B]: the newest token, not run yet
    positions: jax.Array  # int32 [B]: its position
    sampler: SamplerRows

    @classmethod
    def allocate(cls, config: MistralConfig, *, slots: int, repeat_last_n: int) -> Rows:
        sampler = SamplerRows.allocate(slots=slots, vocab_size=config.vocab_size, repeat_last_n=repeat_last_n)
        # Two arrays, not one twice: each is donated.
        return cls(jnp.zeros((slots,), jnp.int32), jnp.zeros((slots,), jnp.int32), sampler)


@dataclass(frozen=True)
class SplitModel:
    """A model taken apart for `jax.jit`: static structure, and weights as a plain list.

    Passing a list of arrays costs microseconds at each call; passing the module costs milliseconds.
    """

    graphdef: Any
    treedef: Any
    weights: list[jax.Array]

    @classmethod
    def of(cls, model: Mistral) -> SplitModel:
        graphdef, state = nnx.split(model)
        weights, treedef = jax.tree.flatten(state)
        return cls(graphdef, treedef, weights)

    def merge(self, weights: list[jax.Array]) -> Mistral:
        """The module round other (traced) weights."""
        return nnx.merge(self.graphdef, jax.tree.unflatten(self.treedef, weights))


def admit(
    rows: Rows,
    slot: jax.Array,
    token: jax.Array,
    position: jax.Array,
    scalars: jax.Array,
    top_k: jax.Array,
    seed: jax.Array,
    recent: jax.Array,
) -> Rows:
    """Give a slot to a new sequence: its last prompt token and that token's position, and its sampling parameters.

    Args:
      rows: donated.
      slot, token, position, top_k: int32 scalars.
      scalars: float32 [6], see `mistral_jax.sampling.row_scalars`.
      seed: uint32 [2].
      recent: int32 [W], see `mistral_jax.sampling.recent_tokens`.
    """
    sampler = rows.sampler
    return Rows(
        tokens=rows.tokens.at[slot].set(token),
        positions=rows.positions.at[slot].set(position),
        sampler=SamplerRows(
            scalars=sampler.scalars.at[slot].set(scalars),
            top_k=sampler.top_k.at[slot].set(top_k),
            seeds=sampler.seeds.at[slot].set(seed),
            recent=sampler.recent.at[slot].set(recent),
            output_counts=sampler.output_counts.at[slot].set(0),
            bias=sampler.bias.at[slot].set(0.0),
        ),
    )


def set_bias(rows: Rows, slot: jax.Array, bias: jax.Array) -> Rows:
    """Set a slot's `logit_bias`, float32 [V], after `admit`. `rows` is donated."""
    return replace(rows, sampler=replace(rows.sampler, bias=rows.sampler.bias.at[slot].set(bias)))


def prefill(
    model: Mistral,
    cache: KVCache,
    slot: jax.Array,
    tokens: jax.Array,
    start: jax.Array,
    count: jax.Array,
    *,
    num_blocks: int | None,
) -> tuple[KVCache, jax.Array]:
    """Run a chunk of one prompt.

    Args:
      cache: donated.
      slot: int32 scalar.
      tokens: int32 [T], the first `count` of them real.
      start: int32 scalar, the position of the first.
      num_blocks: static; see `mistral_jax.attention`.
    Returns: cache, and int32 scalar, the position after the chunk. The next call donates the cache, so nobody can wait for it; the
      scalar becomes ready with it and can be waited for.
    """
    steps = jnp.arange(tokens.shape[0])
    _, cache = model(
        tokens[None],
        cache,
        first_slot=slot,
        positions=(start + steps)[None],
        valid=(steps < count)[None],
        num_blocks=num_blocks,
    )
    return cache, start + count


def decode(
    model: Mistral,
    cache: KVCache,
    rows: Rows,
    active: jax.Array,
    features: jax.Array,
    *,
    num_blocks: int | None,
    repeat: bool,
) -> tuple[KVCache, Rows, jax.Array]:
    """Run one token of each active row and sample the next.

    Args:
      cache, rows: donated.
      active: bool [R]; R >= 2 is the number of slots that take part, from slot 0 on. Inactive rows change nothing.
      features: bool [5], see `mistral_jax.sampling.Features`.
      num_blocks, repeat: static.
    Returns: cache, rows, and `packed` int32 [R, PACKED_WIDTH] (see `mistral_jax.sampling.sample`).
    """
    R = active.shape[0]
    positions = rows.positions[:R]
    hidden, cache = model(
        rows.tokens[:R, None],
        cache,
        first_slot=jnp.int32(0),
        positions=positions[:, None],
        valid=active[:, None],
        num_blocks=num_blocks,
    )
    sampler = jax.tree.map(lambda x: x[:R], rows.sampler)
    with jax.named_scope("sample"):
        chosen, packed = sample(model.logits(hidden[:, 0]), sampler, positions + 1, features, repeat=repeat)
    token = jnp.where(active & (chosen >= 0), chosen, rows.tokens[:R])
    slots = jnp.arange(R)
    # Out of bounds, hence dropped, for rows that are not active.
    stored = jnp.where(active, token, rows.sampler.output_counts.shape[1])
    index = jnp.where(active, (positions + 1) % rows.sampler.recent.shape[1], rows.sampler.recent.shape[1])
    new_rows = Rows(
        tokens=rows.tokens.at[:R].set(token),
        positions=rows.positions.at[:R].add(active.astype(jnp.int32)),
        sampler=replace(
            rows.sampler,
            recent=rows.sampler.recent.at[slots, index].set(token, mode="drop"),
            output_counts=rows.sampler.output_counts.at[slots, stored].add(1, mode="drop"),
        ),
    )
    return cache, new_rows, packed
