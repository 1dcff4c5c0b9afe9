"""Dispatches rounds to the device and reads their results. Used only by the engine's device thread."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.calls import RunnerState
from mistral_jax.runtime.decode_loop import DecodeLoop
from mistral_jax.runtime.runner import Runner
from mistral_jax.tokenizer.base import Tokenizer
from serving.engine.messages import Event
from serving.engine.scalings import ScalingsTrack
from serving.engine.scheduler import LiveSequence, Round
from serving.engine.shares import AdapterShares
from serving.engine.work import KINDS, Output

EngineSequence = LiveSequence[PrefillChunk]


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
        self._ends: tuple[EngineSequence, ...] = ()
        """Sequences that end with the last round without generating a token."""
        self._progressed: list[tuple[EngineSequence, int]] = []
        """Sequences that want to know how much of their prompts has been run, and with the last round it is so much."""
        self._shared = False
        """Whether the adapter weights of the last round are sampled for the adapter shares."""

    def _admit(self, sequence: EngineSequence) -> None:
        """Set up a sequence in its slot."""
        sequence.clock.admit()
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
        if request.constraint is not None:
            sequence.constraint = request.constraint.start(at_start=request.at_start)
        self._loop.admit(sequence)

    @property
    def proposals(self) -> tuple[int, int]:
        """Tokens that were proposed, and those of them that came next; see `DecodeLoop`."""
        return self._loop.proposed, self._loop.accepted

    def measure(self) -> None:
        """See `DecodeLoop.measure`."""
        self._loop.measure()

    def forget(self, sequence: EngineSequence) -> None:
        """Drop the state of a sequence; does nothing for unknown ones."""
        self._outputs.pop(id(sequence), None)
        self._loop.forget(sequence)

    @property
    def is_pending(self) -> bool:
        """Whether there are results that have not been read."""
        return self._loop.is_pending or bool(self._ends or self._progressed)

    def run(
        self, planned: Round[PrefillChunk], admitted: Iterable[EngineSequence] = ()
    ) -> list[tuple[EngineSequence, Event]]:
        """Start a round on the device, and turn the results of the round before into events. The scheduler has already
        counted its decode step.

        Args:
          admitted: sequences to set up in their slots before it.
        """
        self._loop.move(planned.moves)
        for sequence in admitted:
            self._admit(sequence)
        shared, self._shared = self._shared, self._shares.is_due(time.monotonic())
        ends, self._ends = self._ends, planned.ends
        progressed = self._progressed
        self._progressed = [(s, chunk.start + chunk.count) for s, chunk in planned.prefills if s.request.progress]
        results = self._loop.step(
            planned.prefills, planned.decodes, reads_weights=self._shared, several=planned.several
        )
        now = time.monotonic()
        if shared and results.weights is not None:
            self._shares.add([token.weights for token in results.tokens if token.weights is not None])
        news: list[tuple[EngineSequence, Event]] = []
        ended: set[EngineSequence] = set()

        def add(sequence: EngineSequence, event: Event) -> None:
            news.append((sequence, event.completed(sequence.clock.times(now), sequence.cached)))
            if event.finish_reason is not None:
                ended.add(sequence)

        for sequence, count in progressed:
            if not sequence.gone:
                add(sequence, Event(request_id=sequence.request.request_id, prompt_processed=count))
        for sequence, packed in results.scores:
            if not sequence.gone and sequence not in ended:
                add(sequence, self._outputs[id(sequence)].push_prompt(packed))
        for sequence, sampled, weights in results.tokens:
            if not sequence.gone and sequence not in ended:
                self.generated += 1
                if sampled.token >= 0:
                    sequence.generated.append(sampled.token)
                sequence.clock.token(now)
                event = self._outputs[id(sequence)].push(sampled, weights)
                told = event.text or event.items or event.logprobs or event.scalings or event.token_ids
                if told or event.finish_reason:
                    add(sequence, event)
        for sequence, message in results.failures:
            if not sequence.gone and sequence not in ended:
                add(sequence, _failed(sequence, message))
        for sequence in ends:
            if not sequence.gone and sequence not in ended:
                add(sequence, self._outputs[id(sequence)].end())
        return news


def _failed(sequence: EngineSequence, message: str) -> Event:
    return Event(request_id=sequence.request.request_id, finish_reason="error", error=message, refused=True)
