"""X-LoRA's two passes in one sweep over the weights: the scaled pass of a token beside the scaling pass of the next
one, guessed.

A token needs its scaling pass before its scaled pass, so decoding reads all weights twice for each token. But the two
passes of *different* tokens can share a sweep, if the next token is guessed before it is sampled:

    sweep       1           2           3           4           5
    scaled      -           the         cat         (sit)       sat         (sit) is nobody's: "sat" was sampled,
    scaling     the         cat?        sit?        sat         on?         its own scaling pass comes first
    sampled                 cat         sat         -           on

The scaling pass of "the" is a pass of the base model, whose own choice of the next token is the guess; where the
adapters agree with it, as they often do, a token costs one sweep, else two. The guess is made with the request's own
sampling parameters and random numbers, so that it follows a request that samples, too. What the guess leaves behind if
it was wrong is overwritten before anything reads it: texts are the same, to the last bit.

A row whose scaling pass is not done yet gives no token in a sweep: a step says of each row whether it gave one. Rows
that do not use X-LoRA give one in every sweep.

Axis letters: B slots, R rows of a step, M scaling columns, A adapters.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp

from mistral_jax.model.kv_cache import ReadPlan
from mistral_jax.model.low_rank import Mixture
from mistral_jax.model.mistral import Attend, cached_attends
from mistral_jax.runtime.mixing import AdaptedModel, Caches
from mistral_jax.runtime.sampling import sample
from mistral_jax.runtime.step import AheadRows, Rows, advance


def decode_ahead(
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
    """One sweep: the scaled pass of each row's newest token, if it is ready, and the scaling pass of the next.

    Args:
      caches, rows, active, features, plan, repeat: see `mistral_jax.runtime.step.decode`.
      length: static; most tokens of a sequence: nothing is guessed beyond.
    Returns: caches, rows, `packed` and the weights as from `decode`, and bool [R]: the rows that sampled a token; what
      the others have in `packed` means nothing.
    """
    assert adapted.xlora is not None
    assert adapted.bank is not None
    assert caches.scaling is not None
    assert rows.mixing is not None
    assert rows.ahead is not None
    xlora, model = adapted.xlora, adapted.model
    R = active.shape[0]
    mixing = rows.mixing.first(R)
    ahead = jax.tree.map(lambda x: x[:R], rows.ahead)
    tokens, positions = rows.tokens[:R], rows.positions[:R]
    live = active & mixing.live
    ready = live & ahead.ready
    emits = active & (ready | ~mixing.live)
    # The scaling pass runs the guess where the newest token is through, else the newest token.
    next_tokens = jnp.where(ready, ahead.guesses, tokens)
    next_positions = jnp.where(ready, positions + 1, positions)
    scaling_valid = live & (next_positions < length)

    slots = jnp.arange(R)
    scaled_view = caches.scaled.view(slots, positions=positions[:, None], valid=emits[:, None], plan=plan)
    scaling_view = caches.scaling.view(
        slots, positions=next_positions[:, None], valid=scaling_valid[:, None], plan=plan
    )
    scaled, scaled_layers = cached_attends(model.config, caches.scaled, scaled_view)
    scaling, scaling_layers = cached_attends(model.config, caches.scaling, scaling_view)
    weights = jnp.where(mixing.live[:, None, None], ahead.weights, mixing.weights)
    first = xlora.scaling_mixture(adapted.bank, adapted.adapters)
    first_weights = jnp.zeros_like(weights) if first is None else jnp.broadcast_to(first.weights[0], weights.shape)
    hidden = model.run(
        jnp.concatenate([tokens, next_tokens])[:, None],
        jnp.concatenate([positions, next_positions])[:, None],
        [_side_by_side(a, b, R) for a, b in zip(scaled, scaling, strict=True)],
        Mixture(
            bank=adapted.bank,
            weights=jnp.concatenate([weights, first_weights])[:, None],
            columns=xlora.columns,
        ),
    )
    caches = Caches(
        replace(caches.scaled, layers=tuple(scaled_layers)), replace(caches.scaling, layers=tuple(scaling_layers))
    )

    with jax.named_scope("sample"):
        sampler = jax.tree.map(lambda x: jnp.concatenate([x[:R], x[:R]]), rows.sampler)
        at = jnp.concatenate([positions, next_positions]) + 1
        chosen, packed = sample(model.logits(hidden[:, 0]), sampler, at, features, repeat=repeat)
    made = xlora.weights(xlora.scalings(hidden[R:]), adapted.adapters)[:, 0]

    moved = advance(rows, emits, chosen[:R], weights)
    right = ready & (chosen[:R] == ahead.guesses) & scaling_valid
    new = AheadRows(
        rows.ahead.ready.at[:R].set(jnp.where(active, right | (live & ~ready), ahead.ready)),
        rows.ahead.weights.at[:R].set(jnp.where(live[:, None, None], made, ahead.weights)),
        rows.ahead.guesses.at[:R].set(jnp.where(live, jnp.maximum(chosen[R:], 0), ahead.guesses)),
    )
    return caches, replace(moved, ahead=new), packed[:R], weights, emits


def _side_by_side(first: Attend, second: Attend, rows: int) -> Attend:
    """The first `rows` rows of a batch to one attention, the others to another."""

    def run(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.concatenate(
            [
                first(queries[:rows], keys[:rows], values[:rows]),
                second(queries[rows:], keys[rows:], values[rows:]),
            ]
        )

    return run
