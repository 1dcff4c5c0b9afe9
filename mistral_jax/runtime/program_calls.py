"""The calls of a runner's programs: their arguments, the static ones included, and their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import jax
import numpy as np

from mistral_jax.runtime.buckets import Buckets
from mistral_jax.runtime.calls import Call, Changed, Forwarded, Looked, Prefilled, RunnerState, Stepped, Taken
from mistral_jax.runtime.mixing import Caches
from mistral_jax.runtime.programs import Programs
from mistral_jax.runtime.prompt_lookup import Proposed
from mistral_jax.runtime.sampling.sample import Features, mask_words, smallest_sampler
from mistral_jax.runtime.step import Forward, Rows, Run

_REMEMBERED = 64
"""Sets of rows whose arrays are kept on the device."""


class ProgramCalls:
    """Makes calls; nothing runs before they are called. State is donated.

    Args:
      buckets: the shapes that the programs are compiled for.
    """

    def __init__(self, programs: Programs, buckets: Buckets) -> None:
        self._programs, self._buckets = programs, buckets
        self._no_masks: dict[int, jax.Array] = {}
        """By number of rows, the mask that allows all tokens."""
        # What hardly changes from step to step is already on the device when a step begins.
        self._active = lru_cache(_REMEMBERED)(self._put_active)
        self._counts = lru_cache(_REMEMBERED)(self._put_counts)
        self._flags = lru_cache(_REMEMBERED)(self._put_flags)
        self._zero_weights: dict[int, jax.Array | None] = {}

    def prefill(
        self,
        state: RunnerState,
        slot: int,
        tokens: np.ndarray,
        *,
        start: int,
        count: int,
        scaling: bool,
        score: bool = False,
        embed: bool = False,
    ) -> Call[Prefilled]:
        """The call that runs the first `count` of `tokens`, int32 [size of a chunk], at positions from `start` on.

        Args:
          score: compute log-probabilities; `tokens` then has the size of a scored chunk plus one, the token after the
            chunk.
          embed: pool the hidden states.
        """
        programs = self._programs
        # One length for all scored and embedded chunks: they are rare, and each length is a program.
        plan = self._buckets.plan(programs.length if score or embed else start + count)

        def result(caches: Caches, done: jax.Array, other: jax.Array | None) -> Prefilled:
            name = "scores" if score else "pooled" if embed else "weights"
            return Prefilled(RunnerState(caches, state.rows), done, **{name: other})

        return Call(
            programs.score if score else programs.embed if embed else programs.prefill,
            (
                self._programs.split.weights,
                self._programs.extra(),
                state.caches,
                state.rows.mixing,
                np.int32(slot),
                tokens,
                np.int32(start),
                np.int32(count),
            ),
            {"plan": plan, "scaling": scaling},
            result,
        )

    def all_allowed(self, R: int) -> jax.Array:
        """The mask of R rows that allows all tokens."""
        if R not in self._no_masks:
            everything = np.full((R, mask_words(self._programs.config.vocab_size)), -1, np.int32)
            self._no_masks[R] = self._programs.placement.put(everything)
        return self._no_masks[R]

    def _no_weights(self, R: int) -> jax.Array | None:
        """Adapter weights of zero, float32 [R, M, A]; None without adapters."""
        if R not in self._zero_weights:
            self._zero_weights[R] = self._programs.empty_weights(R)
        return self._zero_weights[R]

    def _put_active(self, R: int, slots: tuple[int, ...]) -> jax.Array:
        """bool [R], set for these slots."""
        mask = np.zeros((R,), np.bool_)
        mask[list(slots)] = True
        return self._programs.placement.put(mask)

    def _put_counts(self, R: int, slots: tuple[int, ...], counts: tuple[int, ...]) -> jax.Array:
        """int32 [R]"""
        array = np.zeros((R,), np.int32)
        array[list(slots)] = counts
        return self._programs.placement.put(array)

    def _put_flags(self, features: Features) -> jax.Array:
        return self._programs.placement.put(features.as_array())

    def append(self, state: RunnerState, R: int, slots: Sequence[int], run: Run) -> Call[Changed]:
        """The call that appends the tokens of a run of R rows to those of `slots`."""
        return Call(
            self._programs.append,
            (state.rows, self._active(R, tuple(slots)), run),
            {},
            lambda rows: Changed(RunnerState(state.caches, rows)),
        )

    def copy_block(self, state: RunnerState, sources: Sequence[int], targets: Sequence[int]) -> Call[Changed]:
        """The call that copies a block, given for each kind of table."""
        arguments = (state.caches, np.asarray(sources, np.int32), np.asarray(targets, np.int32))
        return Call(self._programs.copy_block, arguments, {}, lambda caches: Changed(RunnerState(caches, state.rows)))

    def take_block(self, state: RunnerState, blocks: Sequence[int]) -> Call[Taken]:
        """The call that copies a block out, given for each kind of table."""
        arguments = (state.caches, np.asarray(blocks, np.int32))
        return Call(self._programs.take_block, arguments, {}, lambda *copy: Taken(state, copy))

    def put_block(self, state: RunnerState, blocks: Sequence[int], copy: Any) -> Call[Changed]:
        """The call that puts it back. `copy` may be on the host."""
        arguments = (state.caches, np.asarray(blocks, np.int32), copy)
        return Call(self._programs.put_block, arguments, {}, lambda caches: Changed(RunnerState(caches, state.rows)))

    def take_row(self, state: RunnerState, slot: int) -> Call[Taken]:
        """The call that copies a row out."""
        arguments = (state.rows, np.int32(slot))
        return Call(self._programs.take_row, arguments, {}, lambda row: Taken(state, row))

    def put_row(self, state: RunnerState, slot: int, row: Any) -> Call[Changed]:
        """The call that puts it back. `row` may be on the host."""
        arguments = (state.rows, np.int32(slot), row)
        return Call(self._programs.put_row, arguments, {}, lambda rows: Changed(RunnerState(state.caches, rows)))

    def forward(
        self,
        state: RunnerState,
        R: int,
        slots: Sequence[int],
        run: Run | None,
        *,
        longest: int,
        scaling: bool,
        speculative: bool = False,
    ) -> Call[Forwarded]:
        """The call that runs the rows of `slots`, of R rows, one of the row buckets."""
        active = self._active(R, tuple(slots))
        arguments = (self._programs.split.weights, self._programs.extra(), state.caches, state.rows, active)

        def result(caches: Caches, made: Forward) -> Forwarded:
            return Forwarded(RunnerState(caches, state.rows), made, speculative)

        if speculative:
            # The guess is one token further.
            return Call(
                self._programs.forward_speculative, arguments, {"plan": self._buckets.plan(longest + 1)}, result
            )
        static = {"plan": self._buckets.plan(longest), "scaling": scaling}
        return Call(self._programs.forward, (*arguments, run), static, result)

    def several(
        self,
        state: RunnerState,
        R: int,
        slots: Sequence[int],
        counts: Sequence[int],
        features: Features,
        *,
        longest: int,
    ) -> Call[Stepped]:
        """The call of several decode steps for the rows of `slots`, of R rows, each of which gets so many tokens."""

        def result(caches: Caches, rows: Rows, packed: jax.Array) -> Stepped:
            return Stepped(RunnerState(caches, rows), packed)

        return Call(
            self._programs.several,
            (
                self._programs.split.weights,
                self._programs.extra(),
                state.caches,
                state.rows,
                self._counts(R, tuple(slots), tuple(counts)),
                self._flags(features),
            ),
            {"plan": self._buckets.plan(longest), "only": smallest_sampler(features, self._programs.samplers)},
            result,
        )

    def forward_proposed(
        self, state: RunnerState, R: int, slots: Sequence[int], counts: Sequence[int], *, K: int, longest: int
    ) -> Call[Looked]:
        """The call that runs the rows of `slots`, of R rows, with proposals: at most so many tokens of each, of K."""

        def result(caches: Caches, made: Proposed) -> Looked:
            return Looked(RunnerState(caches, state.rows), made)

        slots = tuple(slots)
        arguments = (
            self._programs.split.weights,
            self._programs.extra(),
            state.caches,
            state.rows,
            self._active(R, slots),
            self._counts(R, slots, tuple(counts)),
            self._no_weights(R),
        )
        static = {"K": K, "plan": self._buckets.plan(longest)}
        return Call(self._programs.forward_proposed, arguments, static, result)

    def sample_proposed(self, looked: Looked, R: int, slots: Sequence[int], features: Features) -> Call[Stepped]:
        """The call that samples them."""
        state, made = looked
        arguments = (
            state.rows,
            self._active(R, tuple(slots)),
            made,
            self._flags(features),
            self.all_allowed(R),
        )

        def result(rows: Rows, packed: jax.Array, emitted: jax.Array) -> Stepped:
            return Stepped(RunnerState(state.caches, rows), packed, None, emitted)

        only = smallest_sampler(features, self._programs.samplers)
        return Call(self._programs.sample_proposed, arguments, {"only": only}, result)

    def sample(
        self, forwarded: Forwarded, R: int, slots: Sequence[int], features: Features, mask: jax.Array
    ) -> Call[Stepped]:
        """The call that samples the rows of `slots`, of R rows."""
        state, made, speculative = forwarded
        # One program with and without a scaling pass: without one no active row has weights that could be frozen.
        whole = made if made.weights is not None else replace(made, weights=self._no_weights(R))
        arguments = (state.rows, self._active(R, tuple(slots)), whole, self._flags(features), mask)

        def result(rows: Rows, packed: jax.Array, emitted: jax.Array | None = None) -> Stepped:
            return Stepped(RunnerState(state.caches, rows), packed, made.weights, emitted)

        static = {"only": smallest_sampler(features, self._programs.samplers)}
        return Call(
            self._programs.sample_speculative if speculative else self._programs.sample, arguments, static, result
        )
