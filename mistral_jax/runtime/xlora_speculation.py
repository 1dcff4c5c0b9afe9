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

from mistral_jax.model.attends import CachedAttend, cached_attends
from mistral_jax.model.kv_cache import ReadPlan
from mistral_jax.model.low_rank import Mixture
from mistral_jax.model.rope import Heads, Positions
from mistral_jax.runtime.mixing import AdaptedModel, Caches
from mistral_jax.runtime.sampling.sample import Features, sample
from mistral_jax.runtime.step import Forward, Rows, SpeculationRows, advance


def forward_speculative(
    adapted: AdaptedModel, caches: Caches, rows: Rows, active: jax.Array, *, plan: ReadPlan, length: int
) -> tuple[Caches, Forward]:
    """One sweep: the scaled pass of each row's newest token, if it is ready, and the scaling pass of the next token.

    Args:
      caches, rows, active, plan: see `mistral_jax.runtime.step.forward`.
      length: maximum tokens of a sequence; no token is guessed beyond it; static.
    """
    assert adapted.xlora is not None
    assert adapted.bank is not None
    assert caches.scaling is not None
    xlora, model = adapted.xlora, adapted.model
    sweep = _Sweep.of(rows, active, length)
    slots = jnp.arange(active.shape[0])
    scaled_view = caches.scaled.view(slots, positions=sweep.positions[:, None], valid=sweep.emits[:, None], plan=plan)
    scaling_view = caches.scaling.view(
        slots, positions=sweep.next_positions[:, None], valid=sweep.guessed[:, None], plan=plan
    )
    scaled = cached_attends(model.config, caches.scaled, scaled_view)
    scaling = cached_attends(model.config, caches.scaling, scaling_view)
    first = xlora.scaling_mixture(adapted.bank, adapted.adapters)
    weights = sweep.weights
    first_weights = jnp.zeros_like(weights) if first is None else jnp.broadcast_to(first.weights[0], weights.shape)
    R = active.shape[0]
    hidden, layers = model.run(
        jnp.concatenate([sweep.tokens, sweep.next_tokens])[:, None],
        jnp.concatenate([sweep.positions, sweep.next_positions])[:, None],
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
    made = xlora.weights(xlora.scalings(hidden[R:]), adapted.adapters)[:, 0]
    return caches, Forward(model.logits(hidden[:, 0]), weights, made)


def sample_speculative(
    rows: Rows,
    active: jax.Array,
    made: Forward,
    features: jax.Array,
    mask: jax.Array,
    *,
    repeat: bool,
    only: Features | None,
    by_kernel: bool,
    length: int,
) -> tuple[Rows, jax.Array, jax.Array]:
    """Sample the next token of each active row that is ready, and guess the one after it.

    Args: see `mistral_jax.runtime.step.sample_rows`, and `forward_speculative`.
    Returns: rows; `packed` as from `sample_rows`; and bool [R], the rows that sampled a token. `packed` is undefined
      for the other rows.
    """
    assert rows.speculation is not None
    assert made.weights is not None
    assert made.next_weights is not None
    R = active.shape[0]
    sweep, speculation = _Sweep.of(rows, active, length), rows.speculation
    with jax.named_scope("sample"):
        sampler = rows.sampler.first(R, copies=2)
        at = jnp.concatenate([sweep.positions, sweep.next_positions]) + 1
        # The mask holds for the token after the newest one. What may follow a guess is not known: any token.
        masks = jnp.concatenate([mask, jnp.where(sweep.ready[:, None], -1, mask)])
        chosen, packed = sample(
            made.logits, sampler, at, features, masks, repeat=repeat, copies=2, only=only, by_kernel=by_kernel
        )
    moved = advance(rows, sweep.emits, chosen[:R], made.weights)
    right = sweep.ready & (chosen[:R] == speculation.guesses[:R]) & sweep.guessed
    live = sweep.live
    new = SpeculationRows(
        speculation.ready.at[:R].set(jnp.where(active, right | (live & ~sweep.ready), speculation.ready[:R])),
        speculation.weights.at[:R].set(jnp.where(live[:, None, None], made.next_weights, speculation.weights[:R])),
        speculation.guesses.at[:R].set(jnp.where(live, jnp.maximum(chosen[R:], 0), speculation.guesses[:R])),
    )
    return replace(moved, speculation=new), packed[:R], sweep.emits


@dataclass(frozen=True, kw_only=True)
class _Sweep:
    """What a sweep runs in each of its R rows, derived from the rows before it."""

    live: jax.Array
    """bool [R]: active rows that use X-LoRA."""
    ready: jax.Array
    """bool [R]: those whose newest token has had its scaling pass."""
    emits: jax.Array
    """bool [R]: active rows whose newest token has its scaled pass, so that a token is sampled."""
    guessed: jax.Array
    """bool [R]: rows that have a scaling pass."""
    tokens: jax.Array
    positions: jax.Array
    """int32 [R]: of the scaled pass."""
    next_tokens: jax.Array
    next_positions: jax.Array
    """int32 [R]: of the scaling pass."""
    weights: jax.Array
    """float32 [R, M, A]: of the scaled pass."""

    @classmethod
    def of(cls, rows: Rows, active: jax.Array, length: int) -> _Sweep:
        assert rows.mixing is not None
        assert rows.speculation is not None
        R = active.shape[0]
        mixing = rows.mixing.first(R)
        speculation = jax.tree.map(lambda x: x[:R], rows.speculation)
        tokens, positions = rows.tokens[:R], rows.positions[:R]
        live = active & mixing.live
        ready = live & speculation.ready
        # The scaling pass runs the guess if the newest token has had its own scaling pass, else the newest token.
        next_positions = jnp.where(ready, positions + 1, positions)
        return cls(
            live=live,
            ready=ready,
            emits=active & (ready | ~mixing.live),
            guessed=live & (next_positions < length),
            tokens=tokens,
            positions=positions,
            next_tokens=jnp.where(ready, speculation.guesses, tokens),
            next_positions=next_positions,
            weights=jnp.where(mixing.live[:, None, None], speculation.weights, mixing.weights),
        )


@partial(jax.tree_util.register_dataclass, data_fields=["first", "second"], meta_fields=["rows"])
@dataclass(frozen=True)
class _SideBySide:
    """The first `rows` rows of a batch to one attention, the others to another. Keeps what both keep."""

    first: CachedAttend
    second: CachedAttend
    rows: int

    def __call__(self, heads: Heads, at: Positions) -> tuple[jax.Array, tuple[Any, Any]]:
        rows = self.rows
        queries, keys, values = heads.rotated(at)
        first, kept_first = self.first.attend(queries[:rows], keys[:rows], values[:rows])
        second, kept_second = self.second.attend(queries[rows:], keys[rows:], values[rows:])
        return jnp.concatenate([first, second]), (kept_first, kept_second)
