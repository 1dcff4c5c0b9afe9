"""The jitted programs of a run, cached for the next run with the same ones: in a notebook, runs are repeated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, Self

import jax
import jax.numpy as jnp
import optax

from mistral_jax.training.settings import TrainingSettings


class Loss(Protocol):
    """The objective. Hashable, and equal to another with the same programs."""

    def __call__(
        self, params: Any, frozen: Any, tokens: jax.Array, weights: jax.Array, key: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Two sums over the tokens that count: of their losses, float32 scalar, and of other numbers for the log,
        float32 [n].

        Args:
          params: the parameters.
          frozen: arrays that are not trained.
          tokens: int32 [B, T + 1].
          weights: float32 [B, T], 1 where the next token counts.
          key: for dropout; None: no dropout.
        """
        ...

    def __hash__(self) -> int: ...


class Programs(NamedTuple):
    """Jitted. Both give sums as float32 [1 + n]: the loss, and the other numbers."""

    gradients: Callable[..., tuple[jax.Array, Any]]
    """(params, frozen, tokens, weights, key) -> sums, gradient of the first."""
    sums: Callable[..., jax.Array]
    """(params, frozen, tokens, weights) -> sums"""


@lru_cache(maxsize=8)
def programs(loss: Loss) -> Programs:
    """The programs that compute a loss."""

    def both(params: Any, *others: Any) -> tuple[jax.Array, jax.Array]:
        value, numbers = loss(params, *others)
        return value, jnp.concatenate([value[None], numbers])

    def gradients(params: Any, *others: Any) -> tuple[jax.Array, Any]:
        (_, sums), gradient = jax.value_and_grad(both, has_aux=True)(params, *others)
        return sums, gradient

    def sums(params: Any, frozen: Any, tokens: jax.Array, weights: jax.Array) -> jax.Array:
        return both(params, frozen, tokens, weights, None)[1]

    return Programs(gradients=jax.jit(gradients), sums=jax.jit(sums))


def _length(tree: Any) -> jax.Array:
    return jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree)))


def _sum(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.add, a, b)


add = jax.jit(_sum, donate_argnums=0)
"""Sum of two trees; the first is donated."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """The fields of `TrainingSettings` that the optimizer needs, with defaults filled in."""

    steps: int
    warmup_steps: int
    learning_rate: float
    final_learning_rate: float
    weight_decay: float
    beta2: float
    clip_norm: float
    rates: tuple[tuple[str, float], ...] = ()
    """Parts of the parameters with another learning rate, and its ratio to the others'."""

    @classmethod
    def of(cls, settings: TrainingSettings, steps: int, rates: Mapping[str, float]) -> Self:
        warmup = min(100, steps // 10) if settings.warmup_steps is None else settings.warmup_steps
        settled = {"steps": steps, "warmup_steps": warmup, "rates": tuple(rates.items())}
        others = {item.name: getattr(settings, item.name) for item in fields(cls) if item.name not in settled}
        return cls(**settled, **others)


def make_optimizer(settings: OptimizerSettings) -> tuple[optax.GradientTransformation, Callable[[int], Any]]:
    """AdamW with warm-up and cosine, and its learning rate by number of updates done. Where `rates` are given, the
    parameters are a dictionary that has these parts.
    """
    warmup = settings.warmup_steps
    # The first update should have a learning rate above 0, too.
    schedule = optax.warmup_cosine_decay_schedule(
        settings.learning_rate / (warmup + 1),
        settings.learning_rate,
        warmup,
        max(settings.steps, warmup + 1),
        end_value=settings.learning_rate * settings.final_learning_rate,
    )
    adamw = optax.adamw(schedule, b1=0.9, b2=settings.beta2, weight_decay=settings.weight_decay)
    clip = optax.clip_by_global_norm(settings.clip_norm) if settings.clip_norm else optax.identity()
    rates = dict(settings.rates)

    def rescale(changes: Any, _params: Any) -> Any:
        return {part: jax.tree.map(partial(jnp.multiply, rates.get(part, 1.0)), own) for part, own in changes.items()}

    return optax.chain(clip, adamw, *([optax.stateless(rescale)] if rates else [])), schedule


@lru_cache(maxsize=8)
def update_program(settings: OptimizerSettings) -> Callable[..., tuple[Any, Any, jax.Array]]:
    """Jitted: (params, optimizer state, summed gradient, number of tokens) -> params, state, norm of the mean gradient
    before clipping. The first two are donated.
    """
    transform, _ = make_optimizer(settings)

    def update(params: Any, state: Any, gradient: Any, counted: jax.Array) -> tuple[Any, Any, jax.Array]:
        mean = jax.tree.map(lambda g: g / counted, gradient)
        changes, state = transform.update(mean, state, params)
        return optax.apply_updates(params, changes), state, _length(mean)

    return jax.jit(update, donate_argnums=(0, 1))
