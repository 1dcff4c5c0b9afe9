"""A runner that recomputes all earlier tokens in every decode step, instead of reusing the caches.

It shows that the caches are exact: it gives the same bits, slowly.

Axis letters: B slots, R rows of a decode step, S tokens of a sequence, A adapters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.model.kv_cache import ReadPlan
from mistral_jax.runtime import step
from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import RunnerState
from mistral_jax.runtime.mixing import AdaptedModel, Caches, MixingRows, RowMixing
from mistral_jax.runtime.programs import Extra, Programs
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "positions", "sampler", "mixing", "speculation", "history"],
    meta_fields=[],
)
@dataclass(frozen=True)
class RowsWithHistory(step.Rows):
    """Rows that store all their tokens."""

    history: jax.Array | None = None
    """int32 [B, S]: tokens by position."""


class RecomputingPrograms(Programs):
    """Programs of a `RecomputingRunner`."""

    speculates = False

    def rows(self) -> step.Rows:
        rows = super().rows()
        history = jnp.zeros((self.slots, self.length), jnp.int32)
        return RowsWithHistory(rows.tokens, rows.positions, rows.sampler, rows.mixing, rows.speculation, history)

    def _admit(self, rows: step.Rows, *args: Any) -> step.Rows:
        """Args:
        args: those of `admission.admit` after the rows, then the padded prompt, int32 [S].
        """
        *others, prompt = args
        admitted = super()._admit(rows, *others)
        assert isinstance(admitted, RowsWithHistory)
        assert admitted.history is not None
        return replace(admitted, history=admitted.history.at[others[0]].set(prompt))

    def _forward(
        self,
        weights: list[jax.Array],
        extra: Extra,
        caches: Caches,
        rows: step.Rows,
        active: jax.Array,
        run: step.Run | None,
        *,
        plan: ReadPlan,
        scaling: bool,
    ) -> tuple[Caches, step.Forward]:
        assert isinstance(rows, RowsWithHistory)
        assert rows.history is not None
        model, R = self.adapted(weights, extra), active.shape[0]
        caches = recompute(
            model,
            caches,
            None if rows.mixing is None else rows.mixing.first(R),
            rows.history[:R],
            jnp.where(active, rows.positions[:R], 0),
            chunk=self.chunk,
            plan=plan,
            scaling=scaling,
        )
        return super()._forward(weights, extra, caches, rows, active, run, plan=plan, scaling=scaling)

    def _sample(self, rows: step.Rows, *args: Any, only: Features | None) -> tuple[step.Rows, jax.Array]:
        moved, packed = super()._sample(rows, *args, only=only)
        return self._with_history(moved, args[0]), packed

    def _with_history(self, moved: step.Rows, active: jax.Array) -> RowsWithHistory:
        """The rows with the newest token of each active row in its history."""
        assert isinstance(moved, RowsWithHistory)
        assert moved.history is not None
        R = active.shape[0]
        # Out of bounds, hence dropped, for rows that are not active.
        place = jnp.where(active, moved.positions[:R], self.length)
        return replace(moved, history=moved.history.at[jnp.arange(R), place].set(moved.tokens[:R], mode="drop"))


def recompute(
    model: AdaptedModel,
    caches: Caches,
    mixing: MixingRows | None,
    history: jax.Array,
    before: jax.Array,
    *,
    chunk: int,
    plan: ReadPlan,
    scaling: bool,
) -> Caches:
    """Compute the keys and values of the first tokens of each row from scratch, in chunks.

    Args:
      history: int32 [R, S].
      before: int32 [R], number of tokens of each row.
      chunk, plan, scaling: static.
    """
    R, S = history.shape
    steps = jnp.arange(chunk)

    def run(i: jax.Array, caches: Caches) -> Caches:
        at = jnp.broadcast_to(i * chunk + steps, (R, chunk))
        tokens = jnp.take_along_axis(history, jnp.minimum(at, S - 1), axis=1)
        valid = at < before[:, None]
        _, caches, _ = model(
            tokens, caches, jnp.arange(R), positions=at, valid=valid, mixing=mixing, plan=plan, scaling=scaling
        )
        return caches

    return lax.fori_loop(0, -(-jnp.max(before) // chunk), run, caches)


class RecomputingRunner(Runner):
    """See `Runner`, and the module's docstring. Prompts have no chunks to prefill, except scored and embedded ones."""

    programs_type = RecomputingPrograms
    prefills = False
    takes_runs = False
    takes_several = False

    def chunks(
        self, prompt_length: int, *, start: int = 0, score: bool = False, embed: bool = False
    ) -> Iterator[PrefillChunk]:
        return super().chunks(prompt_length, score=score, embed=embed) if score or embed else iter(())

    def admit(
        self,
        state: RunnerState,
        slot: int,
        prompt: Sequence[int],
        params: SamplingParams,
        choice: AdapterChoice = BASE,
    ) -> RunnerState:
        if choice.freeze_after is not None:
            raise ValueError(
                "freeze_after needs the caches: earlier tokens would be recomputed with the frozen weights"
            )
        return super().admit(state, slot, prompt, params, choice)

    def _admission(
        self, slot: int, prompt: Sequence[int], params: SamplingParams, mixing: RowMixing | None
    ) -> tuple[Any, ...]:
        history = np.zeros((self.length,), np.int32)
        history[: len(prompt)] = prompt
        return (*super()._admission(slot, prompt, params, mixing), history)
