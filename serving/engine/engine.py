"""The engine: one thread that owns the device, and everything that runs on it.

Life of a request here:
1. `submit` puts it on the bounded queue (any thread).
2. The device thread admits it to a slot and prefills its prompt in chunks, between the decode steps of the others.
3. Each round dispatches one decode step for all sequences that are ready, *before* it reads the tokens of the previous
   round: the device computes round r while the host turns the tokens of round r - 1 into text. Sampled tokens feed the
   next step on the device, without waiting for the host.
4. Tokens become text and log-probabilities, stop strings are detected, and events are delivered once per round.
5. A finished sequence frees its slot at once. The result of a step already in flight for it is dropped: results belong
   to sequences, not to slots.
6. Between rounds the thread runs tasks from other threads, such as loading an adapter, and unloads closed adapters
   whose last sequence has ended.

An exception in the thread ends every live request with an error event and sets `status` to failed. Nothing hangs.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal

from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.device_memory import DeviceMemoryError
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import completion_limit
from mistral_jax.runtime.warming.behind import CompilingBehind
from mistral_jax.tokenizer.base import Tokenizer
from serving.engine.adapter_registry import AdapterRegistry
from serving.engine.messages import (
    Deliver,
    EngineState,
    EngineStatus,
    EngineUnavailableError,
    Event,
    FinishReason,
    QueueFullError,
    Request,
    SlotStatus,
)
from serving.engine.rounds import DeviceRounds, EngineSequence
from serving.engine.scheduler import LiveSequence, Scheduler
from serving.engine.sequence_cache import SequenceCache
from serving.engine.shares import AdapterShares
from serving.engine.slots import slot_statuses
from serving.engine.work import KINDS, cache_key

logger = logging.getLogger(__name__)

PrefixCache = Literal["off", "own", "shared"]

Report = Callable[[str, float | None], None]
"""Called with (current activity, progress from 0 to 1 or None)."""

Observe = Callable[[EngineState, str, float | None], None]
"""Called with (state, detail, progress) on each change while loading and warming up; for progress bars."""


@dataclass(frozen=True, slots=True)
class PlainCompletions:
    """What a completion needs that asks for nothing special."""

    scaling: bool
    """X-LoRA's scaling pass."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A task to run between two rounds."""

    run: Callable[[Runner], Any]
    done: Future[Any]


class JaxEngine:
    """Continuous batching over fixed slots. Implements `serving.engine.messages.Engine`.

    Args:
      load: builds the runner; called on the engine's thread, so that loading and warming up do not block the server.
      tokenizer: decodes tokens to text.
      eos_ids: end-of-sequence tokens.
      slots, queue_limit: sequences that run at once, and requests of each caller that may wait.
      adapters: registry of usable adapters, shared with the HTTP side and the loader.
      prefix_cache: which prompts that begin alike share what the cache holds of them: none, those of one caller, all.
      warm_up: compile programs before becoming ready.
      behind: compile then only those that plain completions need, and the others while these are served; with whether
        plain completions use X-LoRA's scaling pass. None: all before.
      observe: called with the progress of loading and warming up.
    """

    def __init__(
        self,
        *,
        load: Callable[[Report], Runner],
        tokenizer: Tokenizer,
        eos_ids: Collection[int],
        slots: int,
        queue_limit: int,
        adapters: AdapterRegistry | None = None,
        prefix_cache: PrefixCache = "own",
        warm_up: bool = True,
        behind: PlainCompletions | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._load = load
        self._observe = observe
        self._tokenizer = tokenizer
        self._eos_ids = frozenset(eos_ids)
        self._slots, self._queue_limit = slots, queue_limit
        self._prefix_cache: PrefixCache = prefix_cache
        self._warm_up = warm_up
        self._plain = behind
        self._behind: CompilingBehind | None = None
        self._adapters = AdapterRegistry() if adapters is None else adapters
        self._wake = threading.Condition()
        # All below is shared between threads and guarded by `_wake`.
        self._state = EngineState.LOADING
        self._detail, self._progress = "not started", None
        self._scheduler: Scheduler[PrefillChunk] | None = None
        self._cache: SequenceCache[EngineSequence] | None = None
        self._by_id: dict[str, EngineSequence] = {}
        self._cancelled: set[str] = set()
        self._deadline: float | None = None
        self._max_len = 0
        self._tasks: list[_Task] = []
        self._shares = AdapterShares()
        self._rounds: DeviceRounds | None = None
        """Used only by the device thread, except for its token count."""
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    @property
    def status(self) -> EngineStatus:
        with self._wake:
            scheduler = self._scheduler
            proposed, accepted = (0, 0) if self._rounds is None else self._rounds.proposals
            return EngineStatus(
                state=self._state,
                detail=self._detail,
                progress=self._progress,
                running=scheduler.running if scheduler else 0,
                waiting=scheduler.waiting if scheduler else 0,
                proposed=proposed,
                accepted=accepted,
                cache_usage=self._cache.usage if self._cache else 0.0,
                cache_queries=self._cache.queried if self._cache else 0,
                cache_hits=self._cache.hits if self._cache else 0,
                put_back=self._cache.put_back if self._cache else 0,
                slots=self._slots,
                queue_limit=self._queue_limit,
                generated_tokens=0 if self._rounds is None else self._rounds.generated,
            )

    def slots(self) -> Sequence[SlotStatus]:
        """See `serving.engine.messages.Engine.slots`."""
        with self._wake:
            return () if self._scheduler is None else slot_statuses(self._scheduler.slots)

    @property
    def adapter_shares(self) -> tuple[float, ...]:
        """See `serving.engine.messages.Engine.adapter_shares`, and `serving.engine.shares`."""
        return self._shares.ask(time.monotonic())

    def between_rounds[T](self, run: Callable[[Runner], T]) -> Future[T]:
        """Call `run` on the device thread, between two rounds; the future gets its result or exception.

        The future can be cancelled until `run` starts.
        """
        done: Future[T] = Future()
        with self._wake:
            if self._state in (EngineState.FAILED, EngineState.STOPPED):
                done.set_exception(self._unavailable())
            else:
                self._tasks.append(_Task(run, done))
                self._wake.notify()
        return done

    def unload_closed(self) -> None:
        """Unload the adapters that are closed in the registry, each when its last request has ended."""
        with self._wake:
            self._wake.notify()

    def adapter_users(self) -> Mapping[str, int]:
        """See `AdapterRegistry.users`."""
        return self._adapters.users()

    def _unavailable(self) -> EngineUnavailableError:
        return EngineUnavailableError(
            f"the engine is {self._state}{': ' + self._detail if self._detail else ''}",
            state=self._state,
            retry_after=5 if self._state in (EngineState.LOADING, EngineState.WARMING_UP) else None,
        )

    def start(self) -> None:
        """Begin loading on the engine's own thread."""
        self._thread.start()

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """See `serving.engine.messages.Engine.submit`.

        Raises:
          QueueFullError, EngineUnavailableError, AdapterGoneError: see there.
          ValueError: a prompt is empty or does not fit, or a request lacks its seed or its token rules, or its id is in
            use.
        """
        with self._wake:
            if self._state is not EngineState.READY or self._scheduler is None:
                raise self._unavailable()
            self._adapters.check(key for request in requests for key in request.adapters)
            caller = requests[0].caller if requests else 0
            if not self._scheduler.has_room(len(requests), caller=caller):
                raise QueueFullError(
                    f"the queue is full: {self._scheduler.running} requests run and {self._scheduler.waiting} wait "
                    f"(limit {self._queue_limit} for each API key); try again later",
                    retry_after=1,
                )
            sequences = [self._sequence(request, deliver) for request in requests]
            self._adapters.enter([request.adapters for request in requests])
            self._scheduler.submit(sequences)
            self._by_id.update({s.request.request_id: s for s in sequences})
            self._wake.notify()

    def _sequence(self, request: Request, deliver: Deliver) -> EngineSequence:
        room = self._max_len - len(request.prompt)
        needed = 0 if request.params.max_tokens == 0 else 1
        if not request.prompt or room < needed:
            raise ValueError(f"a prompt of {len(request.prompt)} tokens: expected 1 to {self._max_len - needed}")
        if request.params.seed is None:
            raise ValueError("the request has no seed")
        if request.params.needs_rules and request.params.rules is None:
            raise ValueError("the request has no token rules")
        if request.request_id in self._by_id:
            raise ValueError(f"request id {request.request_id!r} is in use")
        limit = completion_limit(request.params.max_tokens, prompt_tokens=len(request.prompt), length=self._max_len)
        return LiveSequence(request=request, deliver=deliver, max_tokens=limit)

    def cancel(self, request_id: str) -> None:
        """See `serving.engine.messages.Engine.cancel`."""
        with self._wake:
            if request_id in self._by_id:
                self._cancelled.add(request_id)
                self._wake.notify()

    def drain(self, timeout: float) -> None:
        """See `serving.engine.messages.Engine.drain`. Returns once the thread has ended."""
        with self._wake:
            if self._state not in (EngineState.FAILED, EngineState.STOPPED):
                self._state, self._detail = EngineState.DRAINING, "shutting down"
            self._deadline = time.monotonic() + timeout
            self._wake.notify()
        if self._behind is not None:
            self._behind.stop()
        if self._thread.is_alive():
            # A load or a compilation cannot be interrupted; the process can exit without joining a daemon thread.
            self._thread.join(timeout + 5.0)

    def _run(self) -> None:
        """The device thread."""
        try:
            try:
                runner = self._load(self._report)
            except (ValueError, OSError) as error:
                self._fail_start(error)
                return
            try:
                state = runner.new_state()
                if self._warm_up:
                    if self._plain is None:
                        state = runner.warm_up(state, self._report_warm_up)
                    else:
                        scaling = self._plain.scaling
                        state, self._behind = runner.warm_up_first(state, self._report_warm_up, scaling=scaling)
                    if runner.adapters is not None and runner.adapters.largest_spare_rank:
                        runner.adapters.warm_up()
            except DeviceMemoryError as error:
                self._fail_start(error)
                return
            rounds = DeviceRounds(runner, state, tokenizer=self._tokenizer, eos_ids=self._eos_ids, shares=self._shares)
            with self._wake:
                self._cache = SequenceCache(
                    runner.new_allocator(reuse=runner.has_pool and self._prefix_cache != "off"),
                    rows=state.caches.scaled.slots,
                    key=lambda s: cache_key(s.request, across_callers=self._prefix_cache == "shared"),
                )
                self._scheduler = Scheduler(
                    slots=self._slots,
                    queue_limit=self._queue_limit,
                    chunk_budget=runner.chunk_sizes[-1],
                    chunks=lambda request, start: KINDS[request.work].chunks(runner, request, start),
                    cache=self._cache,
                )
                self._rounds, self._max_len = rounds, runner.length
                if runner.adapters is not None:
                    self._adapters.loaded_at_start(runner.adapters.entries)
                if self._state is not EngineState.DRAINING:
                    self._state, self._detail, self._progress = EngineState.READY, "", None
            if self._behind is not None:
                self._behind.start(lambda: self._measure_between(rounds))
            self._serve(rounds)
            self._end_all("cancelled", None, EngineState.STOPPED, "stopped")
        except Exception as error:
            logger.exception("the device thread failed")
            message = f"{type(error).__name__}: {error}"
            self._end_all("error", "the engine failed; see the server's log", EngineState.FAILED, message)

    def _measure_between(self, rounds: DeviceRounds) -> None:
        """All programs are compiled: what they cost is measured between two rounds."""

        def tell(done: Future[None]) -> None:
            if not done.cancelled() and (error := done.exception()) is not None:
                logger.debug("costs were not measured: %s", error)

        self.between_rounds(lambda _: rounds.measure()).add_done_callback(tell)

    def _fail_start(self, error: ValueError | OSError) -> None:
        """Files are missing or wrong, or there is too little memory: the user needs the message, not the traceback."""
        logger.debug("loading failed", exc_info=error)
        message = f"the model could not be loaded: {error}"
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
            tasks, self._tasks = self._tasks, []
            self._wake.notify_all()
        for task in tasks:
            if task.done.set_running_or_notify_cancel():
                task.done.set_exception(self._unavailable())
        self._hand_over([(s, Event(request_id=s.request.request_id, finish_reason=reason, error=error)) for s in live])

    def _serve(self, rounds: DeviceRounds) -> None:
        """Run rounds until `drain` ends them."""
        assert self._scheduler is not None
        while True:
            with self._wake:
                while not (
                    self._by_id
                    or rounds.is_pending
                    or self._tasks
                    or self._adapters.has_unused
                    or self._deadline is not None
                ):
                    self._wake.wait()
                if self._deadline is not None and (not self._by_id or time.monotonic() >= self._deadline):
                    return
                cancelled = self._take_cancelled()
                admitted = self._scheduler.admit()
                planned = self._scheduler.next_round()
                tasks, self._tasks = self._tasks, []
                unused = self._adapters.take_unused()
            self._hand_over(cancelled)
            _run_between(rounds.runner, unused, tasks)
            news = rounds.run(planned, admitted)
            with self._wake:
                for sequence, event in news:
                    if event.finish_reason is not None:
                        self._forget(sequence)
            self._hand_over(news)

    def _take_cancelled(self) -> list[tuple[EngineSequence, Event]]:
        """Retire the cancelled sequences; the caller holds the lock."""
        ended: list[tuple[EngineSequence, Event]] = []
        for request_id in self._cancelled:
            sequence = self._by_id.get(request_id)
            if sequence is not None:
                self._forget(sequence)
                ended.append((sequence, Event(request_id=request_id, finish_reason="cancelled")))
        self._cancelled.clear()
        return ended

    def _forget(self, sequence: EngineSequence) -> None:
        """Free everything that a sequence holds; the caller holds the lock."""
        if self._scheduler is not None:
            self._scheduler.retire(sequence)
        if self._by_id.pop(sequence.request.request_id, None) is not None:
            self._adapters.leave(sequence.request.adapters)
        if self._rounds is not None:
            self._rounds.forget(sequence)

    def _hand_over(self, news: Sequence[tuple[EngineSequence, Event]]) -> None:
        """Deliver to each receiver its events of this round, in one call."""
        by_receiver: dict[Deliver, list[Event]] = {}
        for sequence, event in news:
            by_receiver.setdefault(sequence.deliver, []).append(event)
        for deliver, events in by_receiver.items():
            try:
                deliver(events)
            except Exception:
                # A receiver whose event loop has closed must not affect the others.
                logger.exception("events could not be delivered")


def _run_between(runner: Runner, unused: Sequence[str], tasks: Sequence[_Task]) -> None:
    """Unload adapters, and run tasks that were not cancelled. An exception in a task goes to its future."""
    for key in unused:
        assert runner.adapters is not None
        runner.adapters.unload(key)
    for task in tasks:
        if not task.done.set_running_or_notify_cancel():
            continue
        try:
            task.done.set_result(task.run(runner))
        except Exception as error:
            task.done.set_exception(error)
