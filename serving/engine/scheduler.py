"""Who runs next: queue, slots and rounds. Pure Python, no JAX, no threads, no clock.

A round is what the device is given at once: chunks of prompts up to a budget of tokens, and one decode step for every
sequence whose prompt is done. So the sequences that decode never stop for a newcomer; it catches up in chunks between
their steps.

    waiting --admit--> prefilling --its last chunk dispatched--> decoding --retire--> gone
       \\_________________________cancel, at any time________________________/
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.runtime.sampling_params import SamplingParams
from serving.engine.messages import Deliver, Request


class SizedChunk(Protocol):
    """A stretch of a prompt; `size` is what it costs, padding included."""

    @property
    def size(self) -> int: ...


@dataclass(eq=False, kw_only=True, slots=True)
class LiveSequence[C: SizedChunk]:
    """A request on its way. Compared by identity: a slot's next tenant is another object, so nothing meant for one can
    reach the other."""

    request: Request
    deliver: Deliver
    max_tokens: int
    """Most tokens to sample: what the request asked for, at most what fits; 0 for one that ends with its prompt."""
    slot: int = -1
    chunks: deque[C] = field(default_factory=deque[C])
    """Still to be prefilled."""
    steps: int = 0
    """Decode steps dispatched, read back or not; 1 as well for a sequence that ends with its prompt, once it was told
    to end."""
    lockstep: bool = False
    """Whether its next step is planned only once the token of the last one was read: for sequences whose next token
    depends on what the host makes of the last one, such as a grammar's mask. The others do not wait for it."""
    read: int = 0
    """Decode steps whose tokens were read back."""
    gone: bool = False
    """Retired or cancelled: whatever still comes back for it is dropped."""

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
        """Whether it may take part in the next decode step, or end with it."""
        return (
            not self.chunks and self.steps < max(self.max_tokens, 1) and (not self.lockstep or self.read == self.steps)
        )

    @property
    def tokens_held(self) -> int:
        """Tokens in the cache once the dispatched steps have run."""
        return len(self.prompt) - 1 + self.steps

    @property
    def wants_weights(self) -> bool:
        """Whether the request wants to know the adapter weights that the X-LoRA classifier gives."""
        return self.request.scalings is not None and self.request.choice.xlora


@dataclass(frozen=True, slots=True)
class Round[C: SizedChunk]:
    """What to dispatch now, in this order."""

    prefills: tuple[tuple[LiveSequence[C], C], ...]
    decodes: tuple[LiveSequence[C], ...]
    ends: tuple[LiveSequence[C], ...] = ()
    """Sequences that generate nothing, and end with this round."""

    def __bool__(self) -> bool:
        return bool(self.prefills or self.decodes or self.ends)


class Scheduler[C: SizedChunk]:
    """Queue and slots.

    Args:
      slots: sequences that run at once.
      queue_limit: requests that may wait for a slot.
      chunk_budget: most tokens of prompts in a round, padding included; a single chunk may exceed it.
      chunks: the chunks of a request's prompt.
    """

    def __init__(
        self, *, slots: int, queue_limit: int, chunk_budget: int, chunks: Callable[[Request], Iterable[C]]
    ) -> None:
        self._chunks = chunks
        self._chunk_budget = chunk_budget
        self._queue_limit = queue_limit
        # Kept sorted, lowest slot first: a decode step costs as much as its highest slot.
        self._free = list(range(slots))
        self._waiting: deque[LiveSequence[C]] = deque()
        self._running: dict[int, LiveSequence[C]] = {}
        """By slot, in the order of admission."""
        self._shortest_first = False

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return len(self._running)

    def has_room(self, count: int) -> bool:
        """Whether `count` more requests may be submitted: those that a free slot takes at once do not wait."""
        return len(self._waiting) + count <= self._queue_limit + len(self._free)

    def submit(self, sequences: Sequence[LiveSequence[C]]) -> None:
        """Queue sequences; the caller has asked `has_room`."""
        self._waiting.extend(sequences)

    def admit(self) -> list[LiveSequence[C]]:
        """Give free slots to those who wait longest."""
        admitted: list[LiveSequence[C]] = []
        while self._free and self._waiting:
            sequence = self._waiting.popleft()
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
        )

    def _prefill_order(self) -> list[LiveSequence[C]]:
        """Those whose prompts are not done: by admission in one round, in the next those first who have least left.

        So a short prompt does not wait for a long one, a long one is not held up for ever by short ones, and prompts of
        one length are done one after another instead of all together at the end.
        """
        prefilling = [sequence for sequence in self._running.values() if sequence.chunks]
        if len(prefilling) > 1:
            self._shortest_first = not self._shortest_first
            if self._shortest_first:
                prefilling.sort(key=lambda sequence: len(sequence.chunks))
        return prefilling

    def retire(self, sequence: LiveSequence[C]) -> None:
        """Free a sequence's slot, or take it from the queue. Safe to call twice."""
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
