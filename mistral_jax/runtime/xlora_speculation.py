"""Speculative steps of X-LoRA: the scaled pass of a token and the scaling pass of the guessed next token share one
sweep over the weights.

A token needs its scaling pass before its scaled pass, so plain decoding reads all weights twice for each token. The two
passes of *different* tokens can share a sweep if the next token is guessed before it is sampled:

    sweep       1           2           3           4           5
    scaled      -           the         cat         (sit)       sat         (sit) is dropped: "sat" was sampled,
    scaling     the         cat?        sit?        sat         on?         and needs its own scaling pass first
    sampled                 cat         sat         -           on

The scaling pass of "the" is a pass of the base model. The token that the base model would choose next is the guess. A
token costs one sweep where the adapters agree with the base model, as they often do, and two otherwise. The guess uses
the request's sampling parameters and random numbers, so it is also good for requests that sample. What a wrong guess
has written is overwritten before it is read: texts are the same to the last bit.

A row whose scaling pass has not run yet gives no token in a sweep: each step returns which rows gave one. Rows that do
not use X-LoRA give one in every sweep.

Axis letters: B slots, R rows of a step, M scaling columns, A adapters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from mistral_jax.model.attends import Attend, cached_attends
from mistral_jax.model.kv_cache import ReadPlan
from mistral_jax.model.low_rank import Mixture
from mistral_jax.runtime.mixing import AdaptedModel, Caches
from mistral_jax.runtime.sampling import sample
from mistral_jax.runtime.step import Rows, SpeculationRows, advance


def decode_speculative(
    adapted: AdaptedModel,
    caches: Caches,
    rows: Rows,
    active: jax.Array,
    features: jax.Array,
    *,
    plan: ReadPlan,
    repeat: bool,
    length: int,
) -> tuple[Caches, Rows, jax.Array, jax.Array, jax.Array]:
    """One sweep: the scaled pass of each row's newest token, if it is ready, and the scaling pass of the next token.

    Args:
      caches, rows, active, features, plan, repeat: see `mistral_jax.runtime.step.decode`.
      length: maximum tokens of a sequence; no token is guessed beyond it; static.
    Returns: caches, rows, `packed` and the adapter weights as from `decode`; and bool [R], the rows that sampled a
      token. `packed` is undefined for the other rows.
    """
    assert adapted.xlora is not None
    assert adapted.bank is not None
    assert caches.scaling is not None
    assert rows.mixing is not None
    assert rows.speculation is not None
    xlora, model = adapted.xlora, adapted.model
    R = active.shape[0]
    mixing = rows.mixing.first(R)
    speculation = jax.tree.map(lambda x: x[:R], rows.speculation)
    tokens, positions = rows.tokens[:R], rows.positions[:R]
    live = active & mixing.live
    ready = live & speculation.ready
    emits = active & (ready | ~mixing.live)
    # The scaling pass runs the guess if the newest token has had its own scaling pass, else the newest token.
    next_tokens = jnp.where(ready, speculation.guesses, tokens)
    next_positions = jnp.where(ready, positions + 1, positions)
    scaling_valid = live & (next_positions < length)

    slots = jnp.arange(R)
    scaled_view = caches.scaled.view(slots, positions=positions[:, None], valid=emits[:, None], plan=plan)
    scaling_view = caches.scaling.view(
        slots, positions=next_positions[:, None], valid=scaling_valid[:, None], plan=plan
    )
    scaled = cached_attends(model.config, caches.scaled, scaled_view)
    scaling = cached_attends(model.config, caches.scaling, scaling_view)
    weights = jnp.where(mixing.live[:, None, None], speculation.weights, mixing.weights)
    first = xlora.scaling_mixture(adapted.bank, adapted.adapters)
    first_weights = jnp.zeros_like(weights) if first is None else jnp.broadcast_to(first.weights[0], weights.shape)
    hidden, layers = model.run(
        jnp.concatenate([tokens, next_tokens])[:, None],
        jnp.concatenate([positions, next_positions])[:, None],
        [_SideBySide(a, b, R) for a, b in zip(scaled, scaling, strict=True)],
        Mixture(
            bank=adapted.bank,
            weights=jnp.concatenate([weights, first_weights])[:, None],
            columns=xlora.columns,
        ),
    )
    caches = Caches(
        replace(caches.scaled, layers=tuple(scaled for scaled, _ in layers)),
        replace(caches.scaling, layers=tuple(scaling for _, scaling in layers)),
    )

    with jax.named_scope("sample"):
        sampler = rows.sampler.first(R, copies=2)
        at = jnp.concatenate([positions, next_positions]) + 1
        chosen, packed = sample(model.logits(hidden[:, 0]), sampler, at, features, repeat=repeat, copies=2)
    made = xlora.weights(xlora.scalings(hidden[R:]), adapted.adapters)[:, 0]

    moved = advance(rows, emits, chosen[:R], weights)
    right = ready & (chosen[:R] == speculation.guesses) & scaling_valid
    new = SpeculationRows(
        rows.speculation.ready.at[:R].set(jnp.where(active, right | (live & ~ready), speculation.ready)),
        rows.speculation.weights.at[:R].set(jnp.where(live[:, None, None], made, speculation.weights)),
        rows.speculation.guesses.at[:R].set(jnp.where(live, jnp.maximum(chosen[R:], 0), speculation.guesses)),
    )
    return caches, replace(moved, speculation=new), packed[:R], weights, emits


@partial(jax.tree_util.register_dataclass, data_fields=["first", "second"], meta_fields=["rows"])
@dataclass(frozen=True)
class _SideBySide:
    """The first `rows` rows of a batch to one attention, the others to another. Keeps what both keep."""

    first: Attend
    second: Attend
    rows: int

    def __call__(self, queries: jax.Array, keys: jax.Array, values: jax.Array) -> tuple[jax.Array, tuple[Any, Any]]:
        rows = self.rows
        first, kept_first = self.first(queries[:rows], keys[:rows], values[:rows])
        second, kept_second = self.second(queries[rows:], keys[rows:], values[rows:])
        return jnp.concatenate([first, second]), (kept_first, kept_second)
