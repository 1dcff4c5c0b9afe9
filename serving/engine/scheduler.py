"""The scheduler: queue, slots and rounds. Pure Python, no JAX, no threads, no clock.

A round is one unit of work for the device: prefill chunks up to a token budget, and one decode step for every sequence
whose prefill is done. So decoding never stops for a new request: its prompt is prefilled in chunks between the decode
steps.

    waiting --admit--> prefilling --its last chunk dispatched--> decoding --retire--> gone
       \\        \\________________put back, continued later________/           /
        \\_________________________cancel, at any time________________________/

Sequences are admitted as long as there is a slot and room in the cache (`serving.engine.sequence_cache`). If those that
run need more room than there is, the youngest is put back: it leaves its slot and goes on before any other is admitted.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.grammar.constraint import Constraint
from mistral_jax.runtime.blocks.moves import Move
from mistral_jax.runtime.sampling.params import SamplingParams
from serving.engine.clock import SequenceClock
from serving.engine.messages import Deliver, Request
from serving.engine.sequence_cache import CacheUse, SequenceCache
from serving.engine.waiting import Waiting


class SizedChunk(Protocol):
    """A chunk of a prompt: `count` tokens from `start` on; `size` is its cost in tokens, padding included."""

    @property
    def start(self) -> int: ...

    @property
    def count(self) -> int: ...

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
    """-1: none."""
    number: int = -1
    """Of its admission: older ones have lower numbers."""
    use: CacheUse | None = None
    """What it has of the cache; None before its admission."""
    is_started: bool = False
    """Whether its chunks are known; before that it may wait for another that begins alike."""
    chunks: deque[C] = field(default_factory=deque[C])
    """Still to be prefilled."""
    generated: list[int] = field(default_factory=list[int])
    """The tokens that have been read."""
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
    def cached(self) -> int:
        """Tokens of its prompt that were in the cache."""
        return 0 if self.use is None else self.use.cached

    @property
    def is_ready(self) -> bool:
        """Whether it can be in the next decode step, or end with it."""
        return self.is_started and not self.chunks and self.steps < max(self.max_tokens, 1)

    @property
    def room(self) -> int:
        """How many more tokens it may get, besides `steps`."""
        return self.max_tokens - self.steps

    @property
    def tokens_held(self) -> int:
        """Tokens in the KV cache once the dispatched steps have run, if its prompt has."""
        return len(self.prompt) - 1 + self.steps

    @property
    def most_tokens(self) -> int:
        """Of prompt and completion together."""
        return len(self.prompt) + self.max_tokens

    @property
    def known(self) -> tuple[Sequence[int], int]:
        """Its tokens as far as they are known, and how many of them the cache surely holds as they would be prefilled:
        all but the last, and with frozen adapter weights those of the prompt."""
        if self.use is None or self.use.ran < len(self.prompt) - 1:
            return self.prompt, 0 if self.use is None else self.use.ran
        if self.choice.freeze_after is not None:
            return self.prompt, len(self.prompt) - 1
        tokens = [*self.prompt, *self.generated]
        return tokens, len(tokens) - 1

    @property
    def wants_weights(self) -> bool:
        """Whether the request asks for the adapter weights from the X-LoRA classifier."""
        return self.request.scalings is not None and self.request.choice.xlora


@dataclass(frozen=True, slots=True)
class Round[C: SizedChunk]:
    """Work to dispatch now, in this order."""

    moves: tuple[Move, ...]
    """To be carried out before new sequences are admitted to their slots."""
    prefills: tuple[tuple[LiveSequence[C], C], ...]
    decodes: tuple[LiveSequence[C], ...]
    ends: tuple[LiveSequence[C], ...] = ()
    """Sequences that generate nothing and end with this round."""
    several: bool = False
    """Whether `decodes` may get several tokens each: no request waits for the end of the step, and no prompt."""

    def __bool__(self) -> bool:
        return bool(self.moves or self.prefills or self.decodes or self.ends)


class Scheduler[C: SizedChunk]:
    """Queue and slots.

    Args:
      slots: sequences that run at once.
      queue_limit: requests of each caller that may wait for a slot.
      chunk_budget: most prefill tokens in a round, padding included; a single chunk may exceed it.
      chunks: splits a request's prompt into chunks, from a token on.
      cache: the KV cache.
    """

    def __init__(
        self,
        *,
        slots: int,
        queue_limit: int,
        chunk_budget: int,
        chunks: Callable[[Request, int], Iterable[C]],
        cache: SequenceCache[LiveSequence[C]],
    ) -> None:
        self._chunks = chunks
        self._cache = cache
        self._chunk_budget = chunk_budget
        self._queue_limit = queue_limit
        self._slots = slots
        # Sorted, lowest slot first: the cost of a decode step depends on its highest slot.
        self._free = list(range(slots))
        self._waiting: Waiting[LiveSequence[C]] = Waiting()
        self._running: dict[int, LiveSequence[C]] = {}
        """By slot, in admission order."""
        self._next: LiveSequence[C] | None = None
        """Its turn has come, but there is no room in the cache."""
        self._put_back: list[LiveSequence[C]] = []
        """Oldest first."""
        self._admissions = 0
        self._shortest_first = False

    @property
    def slots(self) -> list[LiveSequence[C] | None]:
        """The sequence in each slot; None: the slot is free."""
        return [self._running.get(slot) for slot in range(self._slots)]

    @property
    def waiting(self) -> int:
        return len(self._waiting) + len(self._put_back) + (self._next is not None)

    @property
    def running(self) -> int:
        return len(self._running)

    def has_room(self, count: int, *, caller: int = 0) -> bool:
        """Whether a caller may submit `count` more requests; those that get a free slot do not count as waiting."""
        others = self._put_back if self._next is None else [*self._put_back, self._next]
        waiting = self._waiting.of(caller) + sum(1 for sequence in others if sequence.request.caller == caller)
        return waiting + count <= self._queue_limit + len(self._free)

    def submit(self, sequences: Sequence[LiveSequence[C]]) -> None:
        """Queue sequences; the caller has checked `has_room`."""
        self._waiting.add(sequences)

    def admit(self) -> list[LiveSequence[C]]:
        """Admit sequences to free slots: callers share them evenly (`serving.engine.waiting`). Of one caller, those
        with the lowest `priority` numbers come first, of equal ones the longest-waiting. It is overtaken at most
        `MOST_OVERTAKEN` times in a row, so a sequence with k of the same caller before it in the queue is admitted
        after at most (k + 1) * (MOST_OVERTAKEN + 1) admissions of that caller, whatever comes later."""
        if not self._make_room():
            return []
        admitted: list[LiveSequence[C]] = []
        while self._free and (sequence := self._first_waiting()) is not None:
            if not self._cache.enter(sequence, self._running.values()):
                break
            is_new = sequence.number < 0
            if is_new:
                self._next = None
                sequence.number, self._admissions = self._admissions, self._admissions + 1
                admitted.append(sequence)
            else:
                self._put_back.remove(sequence)
            sequence.slot = self._free.pop(0)
            self._running[sequence.slot] = sequence
        return admitted

    def _first_waiting(self) -> LiveSequence[C] | None:
        """The sequence whose turn it is."""
        if self._put_back:
            return self._put_back[0]
        if self._next is None and self._waiting:
            self._next = self._waiting.take(Counter(live.request.caller for live in self._running.values()))
        return self._next

    def _make_room(self) -> bool:
        """Give the sequences that decode room for the next step, oldest first. False: others had to be put back."""
        enough = True
        for sequence in sorted(self._running.values(), key=lambda each: each.number):
            while sequence.slot >= 0 and sequence.is_started and not sequence.chunks and not self._cache.grow(sequence):
                self._take_out(max(self._running.values(), key=lambda each: each.number))
                enough = False
        return enough

    def _take_out(self, sequence: LiveSequence[C]) -> None:
        assert sequence.use is not None
        is_prefilled = sequence.is_started and not sequence.chunks
        self._cache.take_out(sequence, sequence.tokens_held if is_prefilled else sequence.use.ran)
        self._leave_slot(sequence)
        self._put_back.append(sequence)
        self._put_back.sort(key=lambda each: each.number)

    def _leave_slot(self, sequence: LiveSequence[C]) -> None:
        del self._running[sequence.slot]
        self._free.append(sequence.slot)
        self._free.sort()
        sequence.slot = -1

    def next_round(self) -> Round[C]:
        """Plan a round and count it as dispatched."""
        for sequence in self._running.values():
            if not sequence.is_started and self._cache.starts(sequence):
                assert sequence.use is not None
                sequence.is_started = True
                sequence.chunks = deque(self._chunks(sequence.request, sequence.use.cached))
                self._cache.started(sequence)
        prefills: list[tuple[LiveSequence[C], C]] = []
        budget = self._chunk_budget
        for sequence in self._prefill_order():
            while sequence.chunks and (sequence.chunks[0].size <= budget or not prefills):
                chunk = sequence.chunks.popleft()
                prefills.append((sequence, chunk))
                budget -= chunk.size
                self._cache.runs(sequence, chunk.start + chunk.count)
            if sequence.chunks:
                break
        ready = [s for s in self._running.values() if s.is_ready]
        for sequence in ready:
            if not self._cache.grow(sequence):
                raise AssertionError("a step has no room")
            sequence.steps += 1
        return Round(
            self._cache.take_moves(self._running.values()),
            tuple(prefills),
            decodes=tuple(s for s in ready if s.max_tokens),
            ends=tuple(s for s in ready if not s.max_tokens),
            several=not prefills and not self.waiting,
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
        self._cache.leave(sequence)
        if sequence.slot >= 0:
            self._leave_slot(sequence)
        elif sequence is self._next:
            self._next = None
        elif sequence.number >= 0:
            self._put_back.remove(sequence)
        else:
            self._waiting.remove(sequence)

    def live(self) -> list[LiveSequence[C]]:
        """All sequences, running ones first."""
        first = [] if self._next is None else [self._next]
        return [*self._running.values(), *self._put_back, *first, *self._waiting]
