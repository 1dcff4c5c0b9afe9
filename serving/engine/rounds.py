"""What the device is given in a round, and what comes back. It belongs to the engine's device thread alone."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import numpy as np

from mistral_jax.runtime.ahead_policy import AheadPolicy
from mistral_jax.runtime.runner import Chunk, Runner, RunnerState
from mistral_jax.runtime.sampling import Features, unpack
from mistral_jax.tokenizer.base import Tokenizer
from serving.engine.messages import Event, Request
from serving.engine.output import OutputProcessor
from serving.engine.scalings import ScalingsTrack
from serving.engine.scheduler import LiveSequence, Round
from serving.engine.shares import AdapterShares

Sequence_ = LiveSequence[Chunk]


def chunks_of(runner: Runner, request: Request) -> Iterator[Chunk]:
    """The chunks of a request's prompt; none where nothing would come of them."""
    if request.params.max_tokens == 0 and not request.score_prompt:
        return iter(())
    return runner.chunks(len(request.prompt), score=request.score_prompt)


class Scored(NamedTuple):
    """A chunk of a prompt that was scored."""

    sequence: Sequence_
    chunk: Chunk
    packed: jax.Array
    """int32 [T, PACKED_WIDTH]; see `mistral_jax.runtime.runner.Prefilled.scores`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InFlight:
    """A dispatched round whose results were not read yet."""

    scored: tuple[Scored, ...] = ()
    ends: tuple[Sequence_, ...] = ()
    """Sequences that end with it, without a token."""
    decodes: tuple[Sequence_, ...] = ()
    packed: jax.Array | None = None
    """int32 [R, PACKED_WIDTH] of the decode step, if the round had one."""
    marker: jax.Array | None = None
    """Computed with the round's last prefill chunk."""
    emitted: jax.Array | None = None
    """bool [R]: the rows that sampled a token; None: all."""
    weights: jax.Array | None = None
    """float32 [R, M, A]: of the adapters, if somebody wants to know them."""
    shared: bool = False
    """Whether they count for the shares of the adapters."""


class DeviceRounds:
    """Dispatches rounds and reads their results, one round behind.

    Args:
      runner, state: the state is donated by each call and replaced by what it returns.
      tokenizer, eos_ids: see `serving.engine.output.OutputProcessor`.
      shares: is told the weights of some rounds.
    """

    def __init__(
        self,
        runner: Runner,
        state: RunnerState,
        *,
        tokenizer: Tokenizer,
        eos_ids: Collection[int],
        shares: AdapterShares,
    ) -> None:
        self.runner = runner
        self.generated = 0
        """Tokens that sequences got."""
        self._state = state
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._shares = shares
        self._policy = AheadPolicy(runner.ahead_costs, possible=runner.can_run_ahead)
        self._outputs: dict[int, OutputProcessor] = {}
        self._features: dict[int, Features] = {}

    def admit(self, sequence: Sequence_) -> None:
        """Put a sequence into its slot."""
        request, runner = sequence.request, self.runner
        scalings = None
        if request.scalings is not None and runner.adapters is not None:
            columns = 1 if runner.xlora is None else runner.xlora.columns.count
            scalings = ScalingsTrack(
                request.scalings, request.choice, columns=columns, adapters=runner.adapters.capacity
            )
        self._outputs[id(sequence)] = OutputProcessor(
            request, self._tokenizer, eos_ids=self._eos_ids, max_tokens=sequence.max_tokens, scalings=scalings
        )
        self._features[id(sequence)] = Features.of(request.params)
        self._state = runner.admit(self._state, sequence.slot, request.prompt, request.params, request.choice)

    def forget(self, sequence: Sequence_) -> None:
        """Drop what is kept of a sequence; safe for unknown ones."""
        self._outputs.pop(id(sequence), None)
        self._features.pop(id(sequence), None)

    def dispatch(self, planned: Round[Chunk]) -> InFlight:
        """Start a round on the device and return at once."""
        marker = None
        scored: list[Scored] = []
        for sequence, chunk in planned.prefills:
            prompt, scaling = sequence.request.prompt, sequence.request.choice.xlora
            self._state, marker, _, scores = self.runner.prefill(
                self._state, sequence.slot, prompt, chunk, scaling=scaling
            )
            if scores is not None:
                scores.copy_to_host_async()
                scored.append(Scored(sequence, chunk, scores))
        decoded = self._decode(planned.decodes, marker) if planned.decodes else InFlight(marker=marker)
        return replace(decoded, scored=tuple(scored), ends=planned.ends)

    def _decode(self, sequences: tuple[Sequence_, ...], marker: jax.Array | None) -> InFlight:
        """Dispatch a step; the scheduler has counted it already."""
        features = Features()
        for sequence in sequences:
            features |= self._features[id(sequence)]
        slots = [s.slot for s in sequences]
        steps = [(s.request.choice, s.steps - 1) for s in sequences]
        passes = self._policy.passes(steps, self.runner.row_bucket(slots))
        stepped = self.runner.decode(
            self._state,
            slots,
            features,
            longest=max(s.tokens_held for s in sequences),
            scaling=passes.scaling,
            ahead=passes.ahead,
        )
        self._state = stepped.state
        shared = stepped.weights is not None and self._shares.is_due(time.monotonic())
        wanted = shared or any(s.request.scalings is not None and s.request.choice.xlora for s in sequences)
        in_flight = InFlight(
            decodes=sequences,
            packed=stepped.packed,
            marker=marker,
            emitted=stepped.emitted,
            weights=stepped.weights if wanted else None,
            shared=shared,
        )
        for array in (in_flight.packed, in_flight.emitted, in_flight.weights):
            if array is not None:
                array.copy_to_host_async()
        return in_flight

    def collect(self, round_: InFlight) -> list[tuple[Sequence_, Event]]:
        """Wait for a round and turn its tokens into events."""
        news = self._prompt_news(round_)
        ended = {sequence for sequence, event in news if event.finish_reason is not None}
        if round_.packed is None:
            jax.block_until_ready(round_.marker)
        else:
            news += self._token_news(round_, np.asarray(round_.packed), ended)
        news += [
            (sequence, self._outputs[id(sequence)].end())
            for sequence in round_.ends
            if not sequence.gone and sequence not in ended
        ]
        return news

    def _prompt_news(self, round_: InFlight) -> list[tuple[Sequence_, Event]]:
        """The log-probabilities of prompts."""
        news: list[tuple[Sequence_, Event]] = []
        ended: set[Sequence_] = set()
        for sequence, chunk, packed in round_.scored:
            if sequence.gone or sequence in ended:
                continue
            event = self._outputs[id(sequence)].push_prompt(np.asarray(packed)[: chunk.count])
            if event.finish_reason is not None:
                ended.add(sequence)
            news.append((sequence, event))
        return news

    def _token_news(
        self, round_: InFlight, packed: np.ndarray, ended: Collection[Sequence_]
    ) -> list[tuple[Sequence_, Event]]:
        """What was sampled. `ended`: sequences that had their last event already."""
        weights = None if round_.weights is None else np.asarray(round_.weights)
        emitted = self._emitted(round_)
        if weights is not None and round_.shared:
            self._shares.add(weights, [s.slot for s in emitted if s.request.choice.xlora])
        news: list[tuple[Sequence_, Event]] = []
        for sequence in emitted:
            if sequence.gone or sequence in ended:
                continue
            self.generated += 1
            sampled = unpack(packed[sequence.slot], sequence.request.params.logprobs)
            own = None if weights is None or not sequence.request.choice.xlora else weights[sequence.slot]
            event = self._outputs[id(sequence)].push(sampled, own)
            if event.text or event.logprobs or event.scalings or event.finish_reason is not None:
                news.append((sequence, event))
        return news

    def _emitted(self, round_: InFlight) -> Sequence[Sequence_]:
        """The sequences that a round gave a token. The others take that step again."""
        if round_.emitted is None:
            return round_.decodes
        emitted = np.asarray(round_.emitted)
        got = [s for s in round_.decodes if emitted[s.slot]]
        self._policy.observe(len(got), len(round_.decodes))
        for sequence in round_.decodes:
            if not emitted[sequence.slot]:
                sequence.steps -= 1
        return got
