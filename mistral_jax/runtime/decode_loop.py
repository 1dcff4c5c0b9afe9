"""The loop around a runner: each forward pass is dispatched before the tokens of the previous step are read.

So the device computes one step while the host turns the tokens of the last one into text, and computes the masks of
constrained sequences (`mistral_jax.runtime.constrained`). Notebooks (`mistral_jax.notebook.generate`) and the server's
engine drive the same loop; they differ in scheduling, and in what they do with the tokens.

    loop.admit(sequence)                            puts it into its slot
    loop.move(moves)                                changes which blocks sequences have, if an allocator gives them
    results = loop.step(prefills, decodes)          starts work on the device, and reads the results of the last call

Axis letters: R rows of a decode step, T tokens of a chunk, D model dimension, M scaling columns, A adapters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import jax
import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.grammar.constraint import Constraint
from mistral_jax.runtime.blocks.moves import CopyBlock, Move, PutIn, SetTables, TakeOut
from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import Forwarded, RunnerState, Stepped
from mistral_jax.runtime.constrained import ConstrainedRow, threads, wait_for_masks, worthwhile_runs
from mistral_jax.runtime.lookup_policy import LookupPolicy
from mistral_jax.runtime.moving import TakenOut
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams
from mistral_jax.runtime.sampling.sample import Features, Sampled, mask_words, unpack
from mistral_jax.runtime.speculation_policy import SpeculationPolicy
from mistral_jax.runtime.step import RUN_TOKENS, SEVERAL

USUAL_RUN_COST = 1.5
"""Time of a forward pass with runs relative to one without, if it was not measured."""

LONGEST_OF_SEVERAL = 0.025
"""Seconds: decode steps are run together if all together take no longer. Their tokens come at once, and whoever arrives
meanwhile waits."""

_MOST_LEARNED = 16
"""Sequences up to which steps look up proposals. With more the host has no microseconds to spare for each token."""

_LEAST_PATIENCE = 0.005
"""Seconds."""


class LoopSequence(Protocol):
    """A sequence, as the loop uses it. Compared by identity."""

    @property
    def slot(self) -> int: ...

    @property
    def prompt(self) -> Sequence[int]: ...

    @property
    def params(self) -> SamplingParams:
        """With a seed."""
        ...

    @property
    def choice(self) -> AdapterChoice: ...

    @property
    def constraint(self) -> Constraint | None:
        """What its tokens must match; of this sequence alone. None: anything."""
        ...

    @property
    def wants_weights(self) -> bool:
        """Whether to read the adapter weights from the X-LoRA classifier."""
        ...

    steps: int
    """Tokens sampled or appended by dispatched steps, read back or not. The caller increments it before each step; the
    loop adds the further tokens of a run, and decrements it if a step gave the sequence no token."""

    @property
    def room(self) -> int:
        """How many more tokens it may get, besides `steps`."""
        ...

    @property
    def tokens_held(self) -> int:
        """Tokens in the cache after all dispatched steps: the prompt without its last token, and `steps`."""
        ...


class ScoredChunk[S: LoopSequence](NamedTuple):
    """A scored or embedded chunk of a prompt."""

    sequence: S
    chunk: PrefillChunk
    packed: jax.Array
    """int32 [T, PACKED_WIDTH] or float32 [2, D]; see `mistral_jax.runtime.calls.Prefilled`: `scores`, `pooled`."""


@dataclass(kw_only=True, slots=True)
class _InFlight[S: LoopSequence]:
    """Dispatched work whose results have not been read yet."""

    scored: tuple[ScoredChunk[S], ...] = ()
    marker: jax.Array | None = None
    """Ready when the last prefill chunk has run."""
    decodes: tuple[S, ...] = ()
    """Sequences of the decode step that are sampled."""
    slots: tuple[int, ...] = ()
    """Theirs; they may have left them when the results are read."""
    stepped: Stepped | None = None
    """The results of the decode step; None if there was none."""
    counts: tuple[int, ...] | None = None
    """Tokens that each of them gets; None: one."""
    reads_weights: bool = False
    """Whether its adapter weights are copied to the host."""


class LoopToken[S: LoopSequence](NamedTuple):
    """The next token of a sequence."""

    sequence: S
    sampled: Sampled
    weights: np.ndarray | None
    """float32 [M, A]: the adapter weights that predicted the token, if they were read and came from the classifier;
    None after they were frozen."""


class LoopScores[S: LoopSequence](NamedTuple):
    """Log-probabilities of the next tokens of a prompt, or their pooled hidden states."""

    sequence: S
    packed: np.ndarray
    """int32 [tokens of the chunk, PACKED_WIDTH], see `mistral_jax.runtime.sampling.sample.unpack`; of an embedded chunk
    float32 [2, D], see `mistral_jax.runtime.calls.Prefilled.pooled`."""


class LoopFailure[S: LoopSequence](NamedTuple):
    """A sequence that cannot go on. The caller ends it."""

    sequence: S
    message: str


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopResults[S: LoopSequence]:
    """The results of the call before, and what failed in this one."""

    scores: tuple[LoopScores[S], ...] = ()
    tokens: tuple[LoopToken[S], ...] = ()
    """In the order in which each sequence got them; with runs, several of one sequence."""
    weights: np.ndarray | None = None
    """float32 [R, M, A], by slot; None if not read."""
    failures: tuple[LoopFailure[S], ...] = ()


class DecodeLoop[S: LoopSequence]:
    """Drives one runner and the state of its sequences. Belongs to one thread.

    Args:
      runner, state: each call donates the state and replaces it by the one that it returns.
    """

    def __init__(self, runner: Runner, state: RunnerState) -> None:
        self.runner = runner
        self._state = state
        self._policy = SpeculationPolicy(runner.speculation_costs, possible=runner.can_speculate)
        self._lookups = LookupPolicy(runner.lookup_costs)
        self._features: dict[int, Features] = {}
        self._constrained: dict[int, ConstrainedRow] = {}
        self._masks = threads()
        self._taken_out: dict[int, TakenOut] = {}
        self.proposed = self.accepted = 0
        """Tokens that steps with proposals might have given besides the first of each row, and those that they gave."""
        self._pending: _InFlight[S] | None = None
        self._clock = _StepClock()

    @property
    def is_pending(self) -> bool:
        """Whether there are results that have not been read."""
        return self._pending is not None

    def admit(self, sequence: S) -> None:
        """Put a sequence into its slot. Prefill its chunks before its first decode step."""
        params, choice = sequence.params, sequence.choice
        self._features[id(sequence)] = Features.of(params)
        if sequence.constraint is not None:
            row = ConstrainedRow(
                sequence.constraint,
                words=mask_words(self.runner.config.vocab_size),
                # A run has no log-probabilities or adapter weights of its tokens, excludes none of them, and might pass
                # a step that freezes.
                takes_runs=params.logprobs is None
                and not params.excludes_tokens
                and not sequence.wants_weights
                and choice.freeze_after is None,
            )
            row.advance(self._masks, ())
            self._constrained[id(sequence)] = row
        self._state = self.runner.admit(self._state, sequence.slot, sequence.prompt, params, choice)

    def move(self, moves: Iterable[Move]) -> None:
        """Carry out what was decided about slots and blocks. Nothing is computed, and no bit changes."""
        for move in moves:
            match move:
                case SetTables(tables):
                    self._state = self.runner.with_tables(self._state, tables)
                case CopyBlock(sources, targets):
                    self._state = self.runner.calls.copy_block(self._state, sources, targets)().state
                case TakeOut(sequence, slot, tables):
                    self._taken_out[id(sequence)] = self.runner.take_out(self._state, slot, tables)
                case PutIn(sequence, tables):
                    taken = self._taken_out.pop(id(sequence))
                    self._state = self.runner.put_in(self._state, sequence.slot, tables, taken)

    def measure(self) -> None:
        """`Runner.measure`, between two steps."""
        self._state = self.runner.measure(self._state)
        self._policy.measured(self.runner.speculation_costs)
        self._lookups.measured(self.runner.lookup_costs)

    def forget(self, sequence: S) -> None:
        """Drop what the loop stores for a sequence; unknown sequences are ignored."""
        self._features.pop(id(sequence), None)
        self._constrained.pop(id(sequence), None)
        self._lookups.forget(id(sequence))
        self._taken_out.pop(id(sequence), None)

    def step(
        self,
        prefills: Iterable[tuple[S, PrefillChunk]],
        decodes: Sequence[S],
        *,
        reads_weights: bool = False,
        several: bool = False,
    ) -> LoopResults[S]:
        """Start chunks of prompts and then a decode step on the device; return the results of the call before,
        including those of sequences that have ended meanwhile.

        Args:
          decodes: sequences of the step, which is already counted in their `steps`; empty: no step.
          reads_weights: read the adapter weights of the step, if there are any.
          several: run several decode steps at once where they are short: nothing waits for the end of one.
        """
        before = self._pending
        if before is None:
            self._clock.start()
        work: _InFlight[S] = _InFlight()
        self._prefill(work, prefills)
        most = self._most_proposed(decodes) if decodes else 0
        if most or (several and decodes and self._may_take_several(decodes)):
            if most:
                self._several(work, decodes, most=most, run=self.runner.look_up)
            else:
                self._several(work, decodes, most=SEVERAL, run=self.runner.several)
            results = LoopResults() if before is None else self._collect(before)
            self._pending = work
            return results
        forwarded = self._forward(decodes) if decodes else None
        rows = {s: row for s in decodes if (row := self._constrained.get(id(s))) is not None}
        if forwarded is not None and not rows:
            self._sample(work, forwarded, decodes, reads_weights=reads_weights)
        results: LoopResults[S] = LoopResults() if before is None else self._collect(before)
        if forwarded is not None and rows:
            results = self._sample_constrained(work, forwarded, decodes, rows, results, reads_weights=reads_weights)
        self._pending = work if work.marker is not None or work.stepped is not None else None
        return results

    def _prefill(self, work: _InFlight[S], prefills: Iterable[tuple[S, PrefillChunk]]) -> None:
        scored: list[ScoredChunk[S]] = []
        for sequence, chunk in prefills:
            self._state, work.marker, _, scores, pooled = self.runner.prefill(
                self._state, sequence.slot, sequence.prompt, chunk, scaling=sequence.choice.xlora
            )
            if (results := pooled if scores is None else scores) is not None:
                results.copy_to_host_async()
                scored.append(ScoredChunk(sequence, chunk, results))
        work.scored = tuple(scored)

    def _may_take_several(self, decodes: Sequence[S]) -> bool:
        """Whether a step may be of several tokens: without constraints, whose masks depend on the token before; without
        X-LoRA's scaling pass; and if it takes so little time that nobody notices."""
        return (
            self._clock.step * SEVERAL <= LONGEST_OF_SEVERAL
            and not any(id(s) in self._constrained or s.choice.xlora for s in decodes)
            and self.runner.row_bucket([s.slot for s in decodes]) in self.runner.several_buckets
            and any(s.room >= SEVERAL - 1 for s in decodes)
        )

    def _several(self, work: _InFlight[S], decodes: Sequence[S], *, most: int, run: Callable[..., Stepped]) -> None:
        """Give each row up to `most` tokens at once, by `Runner.several` or `Runner.look_up`."""
        slots = tuple(s.slot for s in decodes)
        counts = tuple(min(most, 1 + s.room) for s in decodes)
        for sequence, count in zip(decodes, counts, strict=True):
            sequence.steps += count - 1
        longest = max(s.tokens_held for s in decodes)
        stepped = run(self._state, slots, counts, self._union(decodes), longest=longest)
        self._state = stepped.state
        stepped.packed.copy_to_host_async()
        if stepped.emitted is not None:
            stepped.emitted.copy_to_host_async()
        work.decodes, work.slots, work.stepped, work.counts = tuple(decodes), slots, stepped, counts

    def _most_proposed(self, decodes: Sequence[S]) -> int:
        """The most tokens that each row gets by a step that looks up proposals; 0: this is none. It has no constraints,
        whose masks depend on the token before, and no scaling pass of X-LoRA, and the text so far repeats itself
        enough."""
        rows = None if len(decodes) > _MOST_LEARNED else self.runner.lookup_rows([s.slot for s in decodes])
        if rows is None or any(id(s) in self._constrained or s.choice.xlora for s in decodes):
            return 0
        most = self.runner.lookups[rows]
        return most if self._lookups.chooses({id(s): min(most, 1 + s.room) for s in decodes}, rows) else 0

    def _union(self, decodes: Sequence[S]) -> Features:
        """The features that these sequences need."""
        union = Features()
        for features in {self._features[id(s)] for s in decodes}:
            union |= features
        return union

    def _forward(self, decodes: Sequence[S]) -> Forwarded:
        slots = [s.slot for s in decodes]
        bucket = self.runner.row_bucket(slots)
        passes = self._policy.passes([(s.choice, s.steps - 1) for s in decodes], bucket)
        runs = self._runs(decodes, bucket, possible=not passes.scaling)
        return self.runner.forward(
            self._state,
            slots,
            longest=max(s.tokens_held for s in decodes),
            scaling=passes.scaling,
            speculative=passes.speculative,
            runs=runs,
        )

    def _runs(self, decodes: Sequence[S], bucket: int, *, possible: bool) -> dict[int, tuple[int, ...]]:
        """The runs of this step, by slot. They are added to `steps`.

        Args:
          possible: False: there are none.
        """
        rows = {s: row for s in decodes if (row := self._constrained.get(id(s))) is not None}
        if not possible or bucket not in self.runner.run_buckets:
            for row in rows.values():
                row.take_run(())
            return {}
        runs = {s: row.next_run(most=min(RUN_TOKENS, 1 + s.room)) for s, row in rows.items()}
        chosen = worthwhile_runs(
            {s: run for s, run in runs.items() if run},
            rows=len(decodes),
            constrained=len(rows),
            cost=self.runner.run_costs.get(bucket, USUAL_RUN_COST),
        )
        for sequence, row in rows.items():
            row.take_run(chosen.get(sequence, ()))
            sequence.steps += len(row.extras)
        return {sequence.slot: run for sequence, run in chosen.items()}

    def _sample(
        self,
        work: _InFlight[S],
        forwarded: Forwarded,
        decodes: Sequence[S],
        *,
        reads_weights: bool,
        masks: dict[int, np.ndarray] | None = None,
    ) -> None:
        slots = tuple(s.slot for s in decodes)
        stepped = self.runner.sample(forwarded, slots, self._union(decodes), masks)
        self._state = stepped.state
        stepped.packed.copy_to_host_async()
        if stepped.emitted is not None:
            stepped.emitted.copy_to_host_async()
        work.decodes, work.slots, work.stepped = tuple(decodes), slots, stepped
        work.reads_weights = stepped.weights is not None and (reads_weights or any(s.wants_weights for s in decodes))
        if work.reads_weights and stepped.weights is not None:
            stepped.weights.copy_to_host_async()

    def _sample_constrained(
        self,
        work: _InFlight[S],
        forwarded: Forwarded,
        decodes: Sequence[S],
        rows: dict[S, ConstrainedRow],
        results: LoopResults[S],
        *,
        reads_weights: bool,
    ) -> LoopResults[S]:
        """Sample those rows whose masks are ready, and all rows without a constraint. Returns the results with those
        that failed."""
        ready = wait_for_masks(rows, seconds=None if len(rows) == len(decodes) else self._clock.patience)
        failures: list[LoopFailure[S]] = []
        masks: dict[int, np.ndarray] = {}
        for sequence, row in rows.items():
            if sequence not in ready:
                row.held()
            elif (message := row.error()) is not None:
                failures.append(LoopFailure(sequence, message))
            else:
                masks[sequence.slot] = row.sampled(speculative=forwarded.speculative)
        sampled = [s for s in decodes if s not in rows or s.slot in masks]
        for sequence in decodes:
            if sequence not in sampled:
                sequence.steps -= 1
        if sampled:
            self._sample(work, forwarded, sampled, reads_weights=reads_weights, masks=masks)
        else:
            self._state = forwarded.state
        return replace(results, failures=tuple(failures)) if failures else results

    def _collect(self, work: _InFlight[S]) -> LoopResults[S]:
        """Wait for a call's work, and read its results."""
        scores = tuple(
            LoopScores(s, np.asarray(packed) if chunk.embed else np.asarray(packed)[: chunk.count])
            for s, chunk, packed in work.scored
        )
        stepped = work.stepped
        if stepped is None:
            jax.block_until_ready(work.marker)
            return LoopResults(scores=scores)
        packed = np.asarray(stepped.packed)
        self._clock.tick(1 if work.counts is None else max(work.counts))
        if work.counts is not None:
            counts = work.counts if stepped.emitted is None else self._accepted(work, np.asarray(stepped.emitted))
            tokens_of_several = tuple(_tokens_of_several(packed, work, counts))
            self._learn(tokens_of_several)
            return LoopResults(scores=scores, tokens=tokens_of_several)
        weights = np.asarray(stepped.weights) if work.reads_weights else None
        tokens: list[LoopToken[S]] = []
        for sequence, slot in self._emitted(work, stepped):
            sampled = unpack(packed[slot], sequence.params.logprobs)
            used = None if weights is None or not sequence.choice.xlora else weights[slot]
            tokens.append(LoopToken(sequence, sampled, used))
            row = self._constrained.get(id(sequence))
            if row is not None and sampled.token >= 0:
                extras = row.take_extras()
                tokens += [LoopToken(sequence, Sampled(token), None) for token in extras]
                row.advance(self._masks, (sampled.token, *extras))
        self._learn(tokens)
        return LoopResults(scores=scores, tokens=tuple(tokens), weights=weights)

    def _accepted(self, work: _InFlight[S], emitted: np.ndarray) -> tuple[int, ...]:
        """The tokens that each sequence got by a step with proposals; the others are no longer counted."""
        assert work.counts is not None
        got = tuple(int(emitted[slot]) for slot in work.slots)
        for sequence, most, count in zip(work.decodes, work.counts, got, strict=True):
            sequence.steps -= most - count
            self.proposed += most - 1
            self.accepted += count - 1
        self._lookups.observe(got, len(emitted))
        return got

    def _learn(self, tokens: Iterable[LoopToken[S]]) -> None:
        """Let the policy see what was generated, where steps with proposals may be chosen."""
        if not self.runner.lookups or len(self._features) > _MOST_LEARNED:
            return
        for sequence, sampled, _ in tokens:
            if id(sequence) in self._features and sampled.token >= 0:
                self._lookups.push(id(sequence), sequence.prompt, sampled.token)

    def _emitted(self, work: _InFlight[S], stepped: Stepped) -> Sequence[tuple[S, int]]:
        """The sequences that a step gave a token, with their slots; the others repeat that step."""
        rows = tuple(zip(work.decodes, work.slots, strict=True))
        if stepped.emitted is None:
            return rows
        emitted = np.asarray(stepped.emitted)
        got = [(sequence, slot) for sequence, slot in rows if emitted[slot]]
        self._policy.observe(len(got), len(rows))
        for sequence, slot in rows:
            if not emitted[slot]:
                sequence.steps -= 1
        return got


def _tokens_of_several[S: LoopSequence](
    packed: np.ndarray, work: _InFlight[S], counts: Sequence[int]
) -> Iterator[LoopToken[S]]:
    """Args:
    packed: int32 [tokens of a row, R, PACKED_WIDTH].
    counts: tokens of each sequence.
    """
    for i in range(max(counts)):
        for sequence, slot, count in zip(work.decodes, work.slots, counts, strict=True):
            if i < count:
                yield LoopToken(sequence, unpack(packed[i, slot], sequence.params.logprobs), None)


@dataclass(slots=True)
class _StepClock:
    """The time that decode steps take, from the results of one to those of the next."""

    step: float = 0.01
    """Seconds, averaged over the last steps."""
    _last: float = 0.0

    @property
    def patience(self) -> float:
        """Seconds that rows without a constraint may wait for the masks of others: a fraction of a step."""
        return max(_LEAST_PATIENCE, self.step / 2)

    def start(self) -> None:
        """The next step is the first after a pause."""
        self._last = time.monotonic()

    def tick(self, steps: int) -> None:
        """The results of so many steps were read."""
        now = time.monotonic()
        took, self._last = min(now - self._last, 1.0) / steps, now
        self.step += (took - self.step) / 8
