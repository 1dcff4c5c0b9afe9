"""The loop around a runner: each step is dispatched before the tokens of the previous one are read.

So the device computes one step while the host turns the tokens of the last one into text. Notebooks
(`mistral_jax.notebook.generate`) and the server's engine drive the same loop; they differ in scheduling, and in what
they do with the tokens.

    loop.admit(sequence)                                puts it into its slot
    in_flight = loop.dispatch(prefills, decodes)        starts work on the device
    results = loop.collect(earlier)                     waits for an earlier dispatch, and reads its results

Axis letters: R rows of a decode step, T tokens of a chunk, M scaling columns, A adapters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import jax
import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import RunnerState
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling import Features, Sampled, unpack
from mistral_jax.runtime.sampling_params import SamplingParams
from mistral_jax.runtime.speculation_policy import SpeculationPolicy


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
    def wants_weights(self) -> bool:
        """Whether to read the adapter weights from the X-LoRA classifier."""
        ...

    steps: int
    """Decode steps dispatched, read back or not. The caller increments it before each dispatch; the loop decrements it
    if a speculative step gave no token."""

    @property
    def tokens_held(self) -> int:
        """Tokens in the cache after all dispatched steps: the prompt without its last token, and one for each step."""
        ...


class ScoredChunk[S: LoopSequence](NamedTuple):
    """A scored chunk of a prompt."""

    sequence: S
    chunk: PrefillChunk
    packed: jax.Array
    """int32 [T, PACKED_WIDTH]; see `mistral_jax.runtime.calls.Prefilled.scores`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InFlight[S: LoopSequence]:
    """Dispatched work whose results have not been read yet."""

    scored: tuple[ScoredChunk[S], ...] = ()
    decodes: tuple[S, ...] = ()
    packed: jax.Array | None = None
    """int32 [R, PACKED_WIDTH] of the decode step; None if there was none."""
    marker: jax.Array | None = None
    """Ready when the last prefill chunk has run."""
    emitted: jax.Array | None = None
    """bool [R]: the rows that sampled a token; None: all."""
    weights: jax.Array | None = None
    """float32 [R, M, A]: the adapter weights; None if the scaling pass did not run."""
    reads_weights: bool = False
    """Whether `weights` are copied to the host."""

    def reading_weights(self) -> InFlight[S]:
        """The same, with `weights` copied to the host."""
        if self.weights is None:
            return self
        self.weights.copy_to_host_async()
        return replace(self, reads_weights=True)


class LoopToken[S: LoopSequence](NamedTuple):
    """A token sampled for a sequence."""

    sequence: S
    sampled: Sampled
    weights: np.ndarray | None
    """float32 [M, A]: the adapter weights that predicted the token, if they were read and came from the classifier;
    None after they were frozen."""


class LoopScores[S: LoopSequence](NamedTuple):
    """Log-probabilities of the next tokens of a prompt."""

    sequence: S
    packed: np.ndarray
    """int32 [tokens of the chunk, PACKED_WIDTH]; see `mistral_jax.runtime.sampling.unpack`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopResults[S: LoopSequence]:
    """The results of a dispatch."""

    scores: tuple[LoopScores[S], ...]
    tokens: tuple[LoopToken[S], ...]
    weights: np.ndarray | None = None
    """float32 [R, M, A], by slot; None if not read."""


class DecodeLoop[S: LoopSequence]:
    """Drives one runner and the state of its sequences. Belongs to one thread.

    Args:
      runner, state: each call donates the state and replaces it by the one that it returns.
    """

    def __init__(self, runner: Runner, state: RunnerState) -> None:
        self.runner = runner
        self._state = state
        self._policy = SpeculationPolicy(runner.speculation_costs, possible=runner.can_speculate)
        self._features: dict[int, Features] = {}

    def admit(self, sequence: S) -> None:
        """Put a sequence into its slot. Dispatch its chunks before its first decode step."""
        self._features[id(sequence)] = Features.of(sequence.params)
        self._state = self.runner.admit(self._state, sequence.slot, sequence.prompt, sequence.params, sequence.choice)

    def forget(self, sequence: S) -> None:
        """Drop what the loop stores for a sequence; unknown sequences are ignored."""
        self._features.pop(id(sequence), None)

    def dispatch(self, prefills: Iterable[tuple[S, PrefillChunk]], decodes: Sequence[S]) -> InFlight[S]:
        """Start chunks of prompts and then a decode step on the device; return immediately.

        Args:
          decodes: sequences of the step, which is already counted in their `steps`; empty: no step.
        """
        marker = None
        scored: list[ScoredChunk[S]] = []
        for sequence, chunk in prefills:
            self._state, marker, _, scores = self.runner.prefill(
                self._state, sequence.slot, sequence.prompt, chunk, scaling=sequence.choice.xlora
            )
            if scores is not None:
                scores.copy_to_host_async()
                scored.append(ScoredChunk(sequence, chunk, scores))
        if not decodes:
            return InFlight(scored=tuple(scored), marker=marker)
        features = Features()
        for sequence in decodes:
            features |= self._features[id(sequence)]
        slots = [s.slot for s in decodes]
        passes = self._policy.passes([(s.choice, s.steps - 1) for s in decodes], self.runner.row_bucket(slots))
        stepped = self.runner.decode(
            self._state,
            slots,
            features,
            longest=max(s.tokens_held for s in decodes),
            scaling=passes.scaling,
            speculative=passes.speculative,
        )
        self._state = stepped.state
        in_flight = InFlight(
            scored=tuple(scored),
            decodes=tuple(decodes),
            packed=stepped.packed,
            marker=marker,
            emitted=stepped.emitted,
            weights=stepped.weights,
        )
        stepped.packed.copy_to_host_async()
        if stepped.emitted is not None:
            stepped.emitted.copy_to_host_async()
        return in_flight.reading_weights() if any(s.wants_weights for s in decodes) else in_flight

    def collect(self, in_flight: InFlight[S]) -> LoopResults[S]:
        """Wait for a dispatch, and read its results, including those of sequences that have ended meanwhile."""
        scores = tuple(LoopScores(s, np.asarray(packed)[: chunk.count]) for s, chunk, packed in in_flight.scored)
        if in_flight.packed is None:
            jax.block_until_ready(in_flight.marker)
            return LoopResults(scores=scores, tokens=())
        packed = np.asarray(in_flight.packed)
        weights = np.asarray(in_flight.weights) if in_flight.reads_weights else None
        tokens = tuple(
            LoopToken(
                sequence,
                unpack(packed[sequence.slot], sequence.params.logprobs),
                None if weights is None or not sequence.choice.xlora else weights[sequence.slot],
            )
            for sequence in self._emitted(in_flight)
        )
        return LoopResults(scores=scores, tokens=tokens, weights=weights)

    def _emitted(self, in_flight: InFlight[S]) -> Sequence[S]:
        """The sequences that a step gave a token; the others repeat that step."""
        if in_flight.emitted is None:
            return in_flight.decodes
        emitted = np.asarray(in_flight.emitted)
        got = [s for s in in_flight.decodes if emitted[s.slot]]
        self._policy.observe(len(got), len(in_flight.decodes))
        for sequence in in_flight.decodes:
            if not emitted[sequence.slot]:
                sequence.steps -= 1
        return got
