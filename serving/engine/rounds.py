"""Dispatches rounds to the device and reads their results. Used only by the engine's device thread."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass

from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import RunnerState
from mistral_jax.runtime.decode_loop import DecodeLoop, InFlight, LoopToken
from mistral_jax.runtime.runner import Runner
from mistral_jax.tokenizer.base import Tokenizer
from serving.engine.messages import Event
from serving.engine.scalings import ScalingsTrack
from serving.engine.scheduler import LiveSequence, Round
from serving.engine.shares import AdapterShares
from serving.engine.work import KINDS, Output

EngineSequence = LiveSequence[PrefillChunk]


@dataclass(frozen=True, kw_only=True, slots=True)
class DispatchedRound:
    """A round whose results have not been read yet."""

    work: InFlight[EngineSequence]
    ends: tuple[EngineSequence, ...] = ()
    """Sequences that end with this round without generating a token."""
    shared: bool = False
    """Whether its adapter weights are sampled for the adapter shares."""


class DeviceRounds:
    """Dispatches rounds and reads their results, one round behind.

    Args:
      runner, state: see `mistral_jax.runtime.decode_loop.DecodeLoop`.
      tokenizer, eos_ids: see `serving.engine.work.MakeOutput`.
      shares: gets the adapter weights of some rounds.
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
        """Tokens generated so far."""
        self._loop = DecodeLoop[EngineSequence](runner, state)
        self._tokenizer = tokenizer
        self._eos_ids = eos_ids
        self._shares = shares
        self._outputs: dict[int, Output] = {}

    def admit(self, sequence: EngineSequence) -> None:
        """Set up a sequence in its slot."""
        request, runner = sequence.request, self.runner
        scalings = None
        if request.scalings is not None and runner.adapters is not None:
            columns = 1 if runner.xlora is None else runner.xlora.columns.count
            scalings = ScalingsTrack(
                request.scalings, request.choice, columns=columns, adapters=runner.adapters.capacity
            )
        self._outputs[id(sequence)] = KINDS[request.work].output(
            request, self._tokenizer, eos_ids=self._eos_ids, max_tokens=sequence.max_tokens, scalings=scalings
        )
        self._loop.admit(sequence)

    def forget(self, sequence: EngineSequence) -> None:
        """Drop the state of a sequence; does nothing for unknown ones."""
        self._outputs.pop(id(sequence), None)
        self._loop.forget(sequence)

    def dispatch(self, planned: Round[PrefillChunk]) -> DispatchedRound:
        """Start a round on the device and return at once. The scheduler has already counted its decode step."""
        work = self._loop.dispatch(planned.prefills, planned.decodes)
        shared = work.weights is not None and self._shares.is_due(time.monotonic())
        return DispatchedRound(work=work.reading_weights() if shared else work, ends=planned.ends, shared=shared)

    def collect(self, round_: DispatchedRound) -> list[tuple[EngineSequence, Event]]:
        """Wait for a round and turn its tokens into events."""
        results = self._loop.collect(round_.work)
        if round_.shared and results.weights is not None:
            self._shares.add(results.weights, [s.slot for s, *_ in results.tokens if s.choice.xlora])
        news: list[tuple[EngineSequence, Event]] = []
        ended: set[EngineSequence] = set()
        for sequence, packed in results.scores:
            if sequence.gone or sequence in ended:
                continue
            event = self._outputs[id(sequence)].push_prompt(packed)
            if event.finish_reason is not None:
                ended.add(sequence)
            news.append((sequence, event))
        news += self._token_news(results.tokens, ended)
        news += [
            (sequence, self._outputs[id(sequence)].end())
            for sequence in round_.ends
            if not sequence.gone and sequence not in ended
        ]
        return news

    def _token_news(
        self, tokens: Collection[LoopToken[EngineSequence]], ended: Collection[EngineSequence]
    ) -> list[tuple[EngineSequence, Event]]:
        """Events for sampled tokens. `ended`: sequences that already had their last event."""
        news: list[tuple[EngineSequence, Event]] = []
        for sequence, sampled, weights in tokens:
            sequence.read += 1
            if sequence.gone or sequence in ended:
                continue
            self.generated += 1
            event = self._outputs[id(sequence)].push(sampled, weights)
            told = event.text or event.items or event.logprobs or event.scalings
            if told or event.finish_reason is not None:
                news.append((sequence, event))
        return news
