"""Calls of all programs of a runner that change no sequence, for warming up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import jax
import numpy as np

from mistral_jax.model.table_kinds import SPARE
from mistral_jax.runtime.calls import Call, Changed, Forwarded, Looked, Prefilled, RunnerState, Stepped, Taken
from mistral_jax.runtime.sampling.sample import ALL_FEATURES, Features
from mistral_jax.runtime.step import Run
from mistral_jax.runtime.warming.warm_up import AnyCall, EmptyCall

if TYPE_CHECKING:
    from mistral_jax.runtime.runner import Runner

_UNMASKED = replace(ALL_FEATURES, mask=False)


class EmptyCalls:
    """Args:
    runner: its programs are called.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._special = (
            self.look_up,
            self.sample_proposed,
            self.append,
            self.copy_block,
            self.take_block,
            self.put_block,
            self.take_row,
            self.put_row,
        )

    def first_and_others(self, *, scaling: bool) -> tuple[list[EmptyCall], list[EmptyCall]]:
        """The calls of the programs that plain completions need; and those of all others, first what a prompt needs
        that shares a part of a block, then what plain completions need with or without the scaling pass.

        Args:
          scaling: whether plain completions use X-LoRA's scaling pass.
        """
        first: list[EmptyCall] = []
        second: list[EmptyCall] = []
        others: list[EmptyCall] = []
        for call in self.all():
            what = call.keywords
            special = any(what.get(name) for name in ("score", "embed", "run")) or call.func in self._special
            # Speculative steps are those of the scaling pass; a sampler without them serves both kinds of steps.
            usual = what.get("scaling", what.get("speculative", False) or scaling) == scaling
            if call.func == self.copy_block:
                second.insert(0, call)
            else:
                (others if special else first if usual else second).append(call)
        return first, second + others

    def all(self) -> Iterator[partial[AnyCall]]:
        """A call of each program."""
        runner = self._runner
        buckets, lengths = runner.buckets, runner.buckets.lengths
        for scaling in (False,) if runner.xlora is None else (False, True):
            speculates = scaling and runner.can_speculate
            for length in lengths:
                for size in buckets.chunks if runner.prefills else ():
                    yield partial(self.prefill, size=size, length=length, scaling=scaling)
                for bucket in buckets.rows:
                    yield partial(self.forward, bucket=bucket, length=length, scaling=scaling)
                    for only in runner.programs.samplers if bucket in runner.several_buckets and not scaling else ():
                        yield partial(self.several, bucket=bucket, length=length, only=only)
                    if bucket in runner.run_buckets and not scaling:
                        yield partial(self.forward, bucket=bucket, length=length, run=True)
                    if speculates:
                        yield partial(self.forward, bucket=bucket, length=length - 1, scaling=True, speculative=True)
            yield partial(self.prefill, size=buckets.score, length=lengths[-1], scaling=scaling, score=True)
            for size in buckets.embed if runner.embeds else ():
                yield partial(self.prefill, size=size, length=lengths[-1], scaling=scaling, embed=True)
        for bucket in buckets.rows:
            for only in runner.programs.samplers:
                yield partial(self.sample, bucket=bucket, only=only)
                if runner.can_speculate:
                    yield partial(self.sample, bucket=bucket, only=only, speculative=True)
        for bucket in runner.run_buckets:
            yield partial(self.append, bucket=bucket)
        for rows in runner.lookups:
            for length in lengths:
                yield partial(self.look_up, rows=rows, length=length)
            for only in runner.programs.samplers:
                yield partial(self.sample_proposed, rows=rows, only=only)
        if runner.has_pool:
            yield partial(self.copy_block)
            yield partial(self.take_block)
            yield partial(self.put_block)
            yield partial(self.take_row)
            yield partial(self.put_row)

    def prefill(
        self,
        state: RunnerState,
        *,
        size: int,
        length: int,
        scaling: bool,
        score: bool = False,
        embed: bool = False,
    ) -> Call[Prefilled]:
        """A chunk of padding only: nothing is stored."""
        tokens = np.zeros((size + int(score),), np.int32)
        what = {"score": score, "embed": embed}
        return self._runner.calls.prefill(state, 0, tokens, start=length, count=0, scaling=scaling, **what)

    def forward(
        self,
        state: RunnerState,
        *,
        bucket: int,
        length: int = 1,
        scaling: bool = False,
        speculative: bool = False,
        run: bool = False,
    ) -> Call[Forwarded]:
        """A forward pass without active rows."""
        return self._runner.calls.forward(
            state,
            bucket,
            (),
            Run.empty(bucket) if run else None,
            longest=length,
            scaling=scaling,
            speculative=speculative,
        )

    def append(self, state: RunnerState, *, bucket: int) -> Call[Changed]:
        return self._runner.calls.append(state, bucket, (), Run.empty(bucket))

    def look_up(self, state: RunnerState, *, rows: int, length: int = 1) -> Call[Looked]:
        """A pass over proposals without active rows."""
        return self._runner.calls.forward_proposed(state, rows, (), (), K=self._runner.lookups[rows], longest=length)

    def sample_proposed(self, state: RunnerState, *, rows: int, only: Features | None = None) -> Call[Stepped]:
        """Sampling them without active rows; see `sample`."""
        runner = self._runner
        made = runner.programs.empty_proposed(rows, runner.lookups[rows])
        return runner.calls.sample_proposed(Looked(state, made), rows, (), only or _UNMASKED)

    def copy_block(self, state: RunnerState) -> Call[Changed]:
        """A copy of nothing."""
        nothing = [SPARE] * len(self._runner.kinds)
        return self._runner.calls.copy_block(state, nothing, nothing)

    def take_block(self, state: RunnerState) -> Call[Taken]:
        return self._runner.calls.take_block(state, [SPARE] * len(self._runner.kinds))

    def put_block(self, state: RunnerState) -> Call[Changed]:
        """Nothing is put back."""
        nothing = [SPARE] * len(self._runner.kinds)
        shapes = jax.eval_shape(self._runner.programs.take_block, state.caches, np.zeros((len(nothing),), np.int32))
        return self._runner.calls.put_block(state, nothing, jax.tree.map(_zeros, shapes))

    def take_row(self, state: RunnerState) -> Call[Taken]:
        return self._runner.calls.take_row(state, 0)

    def put_row(self, state: RunnerState) -> Call[Changed]:
        """Nothing is put back: the slot is out of bounds."""
        (shapes,) = jax.eval_shape(self._runner.programs.take_row, state.rows, np.int32(0))
        return self._runner.calls.put_row(state, np.iinfo(np.int32).max, jax.tree.map(_zeros, shapes))

    def several(
        self, state: RunnerState, *, bucket: int, length: int = 1, only: Features | None = None
    ) -> Call[Stepped]:
        """Several steps without active rows, by the sampler for these features; see `sample`."""
        return self._runner.calls.several(state, bucket, (), (), only or _UNMASKED, longest=length)

    def sample(
        self, state: RunnerState, *, bucket: int, only: Features | None = None, speculative: bool = False
    ) -> Call[Stepped]:
        """Sampling without active rows, by the sampler for these features; None: the one that decides at run time."""
        runner = self._runner
        made = runner.programs.empty_forward(bucket, speculative=speculative)
        features = only or ALL_FEATURES
        return runner.calls.sample(
            Forwarded(state, made, speculative), bucket, (), features, runner.calls.all_allowed(bucket)
        )


def _zeros(shape: jax.ShapeDtypeStruct) -> np.ndarray:
    """On the host, as what is put back."""
    return np.zeros(shape.shape, shape.dtype)
