"""The scheduler: queue, slots and rounds. Pure Python, no JAX, no threads, no clock.

A round is one unit of work for the device: prefill chunks up to a token budget, and one decode step for every sequence
whose prefill is done. So decoding never stops for a new request: its prompt is prefilled in chunks between the decode
steps.

    waiting --admit--> prefilling --its last chunk dispatched--> decoding --retire--> gone
       \\_________________________cancel, at any time________________________/
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.grammar.constraint import Constraint
from mistral_jax.runtime.sampling.params import SamplingParams
from serving.engine.clock import SequenceClock
from serving.engine.messages import Deliver, Request
from serving.engine.waiting import Waiting


class SizedChunk(Protocol):
    """A chunk of a prompt; `size` is its cost in tokens, padding included."""

    @property
    def size(self) -> int: ...


@dataclass(eq=False, kw_only=True, slots=True)
class LiveSequence[C: SizedChunk]:
    """A request in the queue or in a slot. Compared by identity: the next sequence in a slot is another object, so
    results of one cannot reach the other."""

    request: Request
    deliver: Deliver
    max_tokens: int
    """Most tokens to sample: the request's limit, or fewer if fewer fit; 0 if it ends with its prompt."""
    slot: int = -1
    chunks: deque[C] = field(default_factory=deque[C])
    """Still to be prefilled."""
    steps: int = 0
    """Tokens sampled or appended by dispatched steps, read back or not; also 1 for a sequence that ends with its
    prompt, once its end is planned."""
    constraint: Constraint | None = None
    """What its tokens must match; set at admission."""
    gone: bool = False
    """Retired or cancelled: results that still come back for it are dropped."""
    clock: SequenceClock = field(default_factory=SequenceClock)

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.request.prompt

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def choice(self) -> AdapterChoice:
        return self.request.choice

    @property
    def is_ready(self) -> bool:
        """Whether it can be in the next decode step, or end with it."""
        return not self.chunks and self.steps < max(self.max_tokens, 1)

    @property
    def room(self) -> int:
        """How many more tokens it may get, besides `steps`."""
        return self.max_tokens - self.steps

    @property
    def tokens_held(self) -> int:
        """Tokens in the KV cache once the dispatched steps have run."""
        return len(self.prompt) - 1 + self.steps

    @property
    def wants_weights(self) -> bool:
        """Whether the request asks for the adapter weights from the X-LoRA classifier."""
        return self.request.scalings is not None and self.request.choice.xlora


@dataclass(frozen=True, slots=True)
class Round[C: SizedChunk]:
    """Work to dispatch now, in this order."""

    prefills: tuple[tuple[LiveSequence[C], C], ...]
    decodes: tuple[LiveSequence[C], ...]
    ends: tuple[LiveSequence[C], ...] = ()
    """Sequences that generate nothing and end with this round."""
    several: bool = False
    """Whether `decodes` may get several tokens each: no request waits for the end of the step, and no prompt."""

    def __bool__(self) -> bool:
        return bool(self.prefills or self.decodes or self.ends)


class Scheduler[C: SizedChunk]:
    """Queue and slots.

    Args:
      slots: sequences that run at once.
      queue_limit: requests of each caller that may wait for a slot.
      chunk_budget: most prefill tokens in a round, padding included; a single chunk may exceed it.
      chunks: splits a request's prompt into chunks.
    """

    def __init__(
        self, *, slots: int, queue_limit: int, chunk_budget: int, chunks: Callable[[Request], Iterable[C]]
    ) -> None:
        self._chunks = chunks
        self._chunk_budget = chunk_budget
        self._queue_limit = queue_limit
        self._slots = slots
        # Sorted, lowest slot first: the cost of a decode step depends on its highest slot.
        self._free = list(range(slots))
        self._waiting: Waiting[LiveSequence[C]] = Waiting()
        self._running: dict[int, LiveSequence[C]] = {}
        """By slot, in admission order."""
        self._shortest_first = False

    @property
    def slots(self) -> list[LiveSequence[C] | None]:
        """The sequence in each slot; None: the slot is free."""
        return [self._running.get(slot) for slot in range(self._slots)]

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def has_room(self, count: int, *, caller: int = 0) -> bool:
        """Whether a caller may submit `count` more requests; those that get a free slot do not count as waiting."""
        return self._waiting.of(caller) + count <= self._queue_limit + len(self._free)

    def submit(self, sequences: Sequence[LiveSequence[C]]) -> None:
        """Queue sequences; the caller has checked `has_room`."""
        self._waiting.add(sequences)

    def admit(self) -> list[LiveSequence[C]]:
        """Admit sequences to free slots: callers share them evenly (`serving.engine.waiting`). Of one caller, those
        with the lowest `priority` numbers come first, of equal ones the longest-waiting. It is overtaken at most
        `MOST_OVERTAKEN` times in a row, so a sequence with k of the same caller before it in the queue is admitted
        after at most (k + 1) * (MOST_OVERTAKEN + 1) admissions of that caller, whatever comes later."""
        admitted: list[LiveSequence[C]] = []
        while self._free and self._waiting:
            sequence = self._waiting.take(Counter(live.request.caller for live in self._running.values()))
            sequence.slot = self._free.pop(0)
            sequence.chunks = deque(self._chunks(sequence.request))
            self._running[sequence.slot] = sequence
            admitted.append(sequence)
        return admitted

    def next_round(self) -> Round[C]:
        """Plan a round and count it as dispatched."""
        prefills: list[tuple[LiveSequence[C], C]] = []
        budget = self._chunk_budget
        for sequence in self._prefill_order():
            while sequence.chunks and (sequence.chunks[0].size <= budget or not prefills):
                chunk = sequence.chunks.popleft()
                prefills.append((sequence, chunk))
                budget -= chunk.size
            if sequence.chunks:
                break
        ready = [s for s in self._running.values() if s.is_ready]
        for sequence in ready:
            sequence.steps += 1
        return Round(
            tuple(prefills),
            decodes=tuple(s for s in ready if s.max_tokens),
            ends=tuple(s for s in ready if not s.max_tokens),
            several=not prefills and not self._waiting,
        )

    def _prefill_order(self) -> list[LiveSequence[C]]:
        """Sequences with chunks left: alternately in admission order and fewest chunks left first.

        So a short prompt does not wait for a long one, short ones cannot starve a long one, and prompts of equal length
        finish one after another instead of all together at the end.
        """
        prefilling = [sequence for sequence in self._running.values() if sequence.chunks]
        if len(prefilling) > 1:
            self._shortest_first = not self._shortest_first
            if self._shortest_first:
                prefilling.sort(key=lambda sequence: len(sequence.chunks))
        return prefilling

    def retire(self, sequence: LiveSequence[C]) -> None:
        """Free a sequence's slot, or remove it from the queue. Safe to call twice."""
        if sequence.gone:
            return
        sequence.gone = True
        if sequence.slot < 0:
            self._waiting.remove(sequence)
            return
        del self._running[sequence.slot]
        self._free.append(sequence.slot)
        self._free.sort()

    def live(self) -> list[LiveSequence[C]]:
        """All sequences, running ones first."""
        return [*self._running.values(), *self._waiting]
