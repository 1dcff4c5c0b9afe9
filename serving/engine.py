"""The engine: one thread that owns the device, and everything that runs on it.

Life of a request here:
1. `submit` puts it on the bounded queue (any thread).
2. The device thread admits it to a slot and prefills its prompt in chunks, between the decode steps of the others.
3. Each round dispatches one decode step for all sequences that are ready, *before* it reads the tokens of the round before: the
   device computes round r while the host turns the tokens of round r - 1 into text. Sampled tokens feed the next step on the
   device and do not wait for the host.
4. Tokens become text and log-probabilities, stop strings are found, and events are handed over once for each round.
5. A finished sequence frees its slot at once. A step that was already under way for it is ignored when it comes back, because
   results belong to sequences, not to slots.

Whatever raises in the thread ends every live request with an error event and turns `status` to failed. Nothing hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mistral_jax.runner import Chunk, Runner, RunnerState
from mistral_jax.sampling import Features, unpack
from mistral_jax.tokenizer.base import Tokenizer
from serving.output import OutputProcessor
from serving.request import (
    Deliver,
    EngineState,
    EngineStatus,
    EngineUnavailableError,
    Event,
    FinishReason,
    QueueFullError,
    Request,
)
from serving.scheduler import LiveSequence, Scheduler

logger = logging.getLogger(__name__)

Report = Callable[[str, float | None], None]
"""Called with (what is being done, progress from 0 to 1 or None)."""

Observe = Callable[[EngineState, str, float | None], None]
"""Called with every change of the state's detail and progress while loading and warming up; for progress bars."""

Sequence_ = LiveSequence[Chunk]


@dataclass(frozen=True, slots=True)
class _InFlight:
    """A dispatched round whose results were not read yet."""

    decodes: tuple[Sequence_, ...]
    packed: jax.Array | None
    """int32 [R, PACKED_WIDTH] of the decode step, if the round had one."""
    marker: jax.Array | None
    """Computed with the round's last prefill chunk."""


class JaxEngine:
    """Continuous batching over fixed slots. Implements `serving.request.Engine`.

    Args:
      load: builds the runner; called on the engine's thread, so that loading and warming up do not block the server.
      tokenizer: turns tokens to text.
      eos_ids: tokens that end an answer.
      slots, queue_limit: sequences that run at once, and requests that may wait.
      warm_up: compile every program before becoming ready.
      observe: is told of the progress of loading and warming up.
    """

    def __init__(
        self,
        *,
        load: Callable[[Report], Runner],
        tokenizer: Tokenizer,
        eos_ids: Collection[int],
        slots: int,
        queue_limit: int,
        warm_up: bool = True,
        observe: Observe | None = None,
    ) -> None:
        self._load = load
        self._observe = observe
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._slots, self._queue_limit = slots, queue_limit
        self._warm_up = warm_up
        self._wake = threading.Condition()
        # All below is shared between threads and guarded by `_wake`.
        self._state = EngineState.LOADING
        self._detail, self._progress = "not started", None
        self._scheduler: Scheduler[Chunk] | None = None
        self._by_id: dict[str, Sequence_] = {}
        self._cancelled: set[str] = set()
        self._deadline: float | None = None
        self._max_len = 0
        # The device thread's own.
        self._outputs: dict[int, OutputProcessor] = {}
        self._features: dict[int, Features] = {}
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    @property
    def status(self) -> EngineStatus:
        with self._wake:
            scheduler = self._scheduler
            return EngineStatus(
                state=self._state,
                detail=self._detail,
                progress=self._progress,
                running=scheduler.running if scheduler else 0,
                waiting=scheduler.waiting if scheduler else 0,
                slots=self._slots,
                queue_limit=self._queue_limit,
            )

    def start(self) -> None:
        """Begin loading on the engine's own thread."""
        self._thread.start()

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """See `serving.request.Engine.submit`.

        Raises:
          QueueFullError, EngineUnavailableError: as there.
          ValueError: a prompt is empty or does not fit, or a request has no seed, or its id is in use.
        """
        with self._wake:
            if self._state is not EngineState.READY or self._scheduler is None:
                raise EngineUnavailableError(
                    f"the engine is {self._state}{': ' + self._detail if self._detail else ''}",
                    state=self._state,
                    retry_after=5 if self._state in (EngineState.LOADING, EngineState.WARMING_UP) else None,
                )
            if not self._scheduler.has_room(len(requests)):
                raise QueueFullError(
                    f"the queue is full: {self._scheduler.running} requests run and {self._scheduler.waiting} wait "
                    f"(limit {self._queue_limit}); try again later",
                    retry_after=1,
                )
            sequences = [self._sequence(request, deliver) for request in requests]
            self._scheduler.submit(sequences)
            self._by_id.update({s.request.request_id: s for s in sequences})
            self._wake.notify()

    def _sequence(self, request: Request, deliver: Deliver) -> Sequence_:
        room = self._max_len - len(request.prompt)
        if not request.prompt or room < 1:
            raise ValueError(f"a prompt of {len(request.prompt)} tokens: expected 1 to {self._max_len - 1}")
        if request.params.seed is None:
            raise ValueError("the request has no seed")
        if request.request_id in self._by_id:
            raise ValueError(f"request id {request.request_id!r} is in use")
        wanted = request.params.max_tokens
        return LiveSequence(request=request, deliver=deliver, max_tokens=room if wanted is None else min(wanted, room))

    def cancel(self, request_id: str) -> None:
        """See `serving.request.Engine.cancel`."""
        with self._wake:
            if request_id in self._by_id:
                self._cancelled.add(request_id)
                self._wake.notify()

    def drain(self, timeout: float) -> None:
        """See `serving.request.Engine.drain`. Returns once the thread has ended."""
        with self._wake:
            if self._state not in (EngineState.FAILED, EngineState.STOPPED):
                self._state, self._detail = EngineState.DRAINING, "shutting down"
            self._deadline = time.monotonic() + timeout
            self._wake.notify()
        if self._thread.is_alive():
            # A load or a compilation cannot be interrupted; a daemon thread need not be waited for.
            self._thread.join(timeout + 5.0)

    def _run(self) -> None:
        """The device thread."""
        try:
            try:
                runner = self._load(self._report)
            except (ValueError, OSError) as error:
                # Files that are missing or wrong: the message is for the user, and where it was raised is not.
                logger.debug("loading failed", exc_info=error)
                message = f"the model could not be loaded: {error}"
                self._end_all("error", "the engine failed; see the server's log", EngineState.FAILED, message)
                return
            state = runner.new_state()
            if self._warm_up:
                state = runner.warm_up(state, self._report_warm_up)
            with self._wake:
                self._scheduler = Scheduler(
                    slots=self._slots,
                    queue_limit=self._queue_limit,
                    chunk_budget=runner.chunk_sizes[-1],
                    chunks=runner.chunks,
                )
                self._max_len = runner.length
                if self._state is not EngineState.DRAINING:
                    self._state, self._detail, self._progress = EngineState.READY, "", None
            self._serve(runner, state)
            self._end_all("cancelled", None, EngineState.STOPPED, "stopped")
        except Exception as error:
            logger.exception("the device thread failed")
            message = f"{type(error).__name__}: {error}"
            self._end_all("error", "the engine failed; see the server's log", EngineState.FAILED, message)

    def _report(self, detail: str, progress: float | None) -> None:
        with self._wake:
            self._detail, self._progress = detail, progress
            state = self._state
        if self._observe is not None:
            self._observe(state, detail, progress)

    def _report_warm_up(self, done: int, total: int) -> None:
        with self._wake:
            if self._state is EngineState.LOADING:
                self._state = EngineState.WARMING_UP
        self._report(f"compiled {done} of {total} programs", done / total)

    def _end_all(self, reason: FinishReason, error: str | None, state: EngineState, detail: str) -> None:
        with self._wake:
            self._state, self._detail, self._progress = state, detail, None
            live = list(self._by_id.values())
            for sequence in live:
                self._forget(sequence)
            self._wake.notify_all()
        self._hand_over([(s, Event(request_id=s.request.request_id, finish_reason=reason, error=error)) for s in live])

    def _serve(self, runner: Runner, state: RunnerState) -> None:
        """Rounds until told to stop. `state` is donated by each call and replaced by what it returns."""
        assert self._scheduler is not None
        pending: _InFlight | None = None
        while True:
            with self._wake:
                while not (self._by_id or pending or self._deadline is not None):
                    self._wake.wait()
                if self._deadline is not None and (not self._by_id or time.monotonic() >= self._deadline):
                    return
                cancelled = self._take_cancelled()
                admitted = self._scheduler.admit()
                planned = self._scheduler.next_round()
            self._hand_over(cancelled)
            for sequence in admitted:
                request = sequence.request
                self._outputs[id(sequence)] = OutputProcessor(
                    request, self._tokenizer, eos_ids=self._eos_ids, max_tokens=sequence.max_tokens
                )
                self._features[id(sequence)] = Features.of(request.params)
                state = runner.admit(state, sequence.slot, request.prompt, request.params)
            marker = packed = None
            for sequence, chunk in planned.prefills:
                state, marker, _ = runner.prefill(state, sequence.slot, sequence.request.prompt, chunk)
            if planned.decodes:
                features = Features()
                for sequence in planned.decodes:
                    features |= self._features[id(sequence)]
                state, packed, *_ = runner.decode(
                    state,
                    [s.slot for s in planned.decodes],
                    features,
                    longest=max(s.tokens_held for s in planned.decodes),
                )
                packed.copy_to_host_async()
            if pending is not None:
                self._collect(pending)
            pending = _InFlight(planned.decodes, packed, marker) if planned else None

    def _collect(self, round_: _InFlight) -> None:
        """Wait for a round and turn its tokens into events."""
        if round_.packed is None:
            jax.block_until_ready(round_.marker)
            return
        packed = np.asarray(round_.packed)
        news: list[tuple[Sequence_, Event]] = []
        for sequence in round_.decodes:
            if sequence.gone:
                continue
            sampled = unpack(packed[sequence.slot], sequence.request.params.logprobs)
            event = self._outputs[id(sequence)].push(sampled)
            if event.finish_reason is not None:
                with self._wake:
                    self._forget(sequence)
            if event.text or event.logprobs or event.finish_reason is not None:
                news.append((sequence, event))
        self._hand_over(news)

    def _take_cancelled(self) -> list[tuple[Sequence_, Event]]:
        """Retire the cancelled sequences; the caller holds the lock."""
        ended: list[tuple[Sequence_, Event]] = []
        for request_id in self._cancelled:
            sequence = self._by_id.get(request_id)
            if sequence is not None:
                self._forget(sequence)
                ended.append((sequence, Event(request_id=request_id, finish_reason="cancelled")))
        self._cancelled.clear()
        return ended

    def _forget(self, sequence: Sequence_) -> None:
        """Free all that a sequence holds; the caller holds the lock."""
        if self._scheduler is not None:
            self._scheduler.retire(sequence)
        self._by_id.pop(sequence.request.request_id, None)
        self._outputs.pop(id(sequence), None)
        self._features.pop(id(sequence), None)

    def _hand_over(self, news: Sequence[tuple[Sequence_, Event]]) -> None:
        """Give each receiver its events of this round, in one call."""
        by_receiver: dict[Deliver, list[Event]] = {}
        for sequence, event in news:
            by_receiver.setdefault(sequence.deliver, []).append(event)
        for deliver, events in by_receiver.items():
            try:
                deliver(events)
            except Exception:
                # A receiver that is gone (its event loop closed) must not end the others.
                logger.exception("events could not be delivered")
