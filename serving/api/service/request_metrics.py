"""What the server measures of requests: counters and histograms, from the events that pass by. Event loop only."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial

from serving.api.service.histogram import SECONDS, TOKENS, Histogram
from serving.engine.messages import Event, Request

_seconds = partial(Histogram, SECONDS)
_tokens = partial(Histogram, TOKENS)

REASONS = {"stop": "stop", "length": "length", "cancelled": "abort", "error": "error"}
"""Finish reasons of the engine, and their names in the metrics."""


@dataclass(slots=True)
class _Progress:
    """The last event of a request that has tokens."""

    now: float
    tokens: int


@dataclass(slots=True)
class RequestMetrics:
    """Completions are counted when they end, their prompts with their first token."""

    prompt_tokens: int = 0
    finished: Counter[str] = field(default_factory=Counter[str])
    """Completions that have ended, by reason."""
    time_to_first_token: Histogram = field(default_factory=_seconds)
    """From the queue on."""
    inter_token: Histogram = field(default_factory=_seconds)
    per_output_token: Histogram = field(default_factory=_seconds)
    """Mean of a completion, its first token not counted."""
    end_to_end: Histogram = field(default_factory=_seconds)
    queue: Histogram = field(default_factory=_seconds)
    prefill: Histogram = field(default_factory=_seconds)
    decode: Histogram = field(default_factory=_seconds)
    inference: Histogram = field(default_factory=_seconds)
    """Prefill and decode."""
    prompt_lengths: Histogram = field(default_factory=_tokens)
    completion_lengths: Histogram = field(default_factory=_tokens)
    _live: dict[str, _Progress] = field(default_factory=dict[str, _Progress])
    """Requests whose first token has come."""

    def observe(self, request: Request, event: Event) -> None:
        """Take an event into account, unless its request was abandoned."""
        times = event.times
        if times is not None and times.first_token is not None:
            last = self._live.get(request.request_id)
            if last is None:
                self.prompt_tokens += len(request.prompt)
                self.time_to_first_token.observe(times.first_token - times.queued)
                self._live[request.request_id] = _Progress(times.now, event.completion_tokens)
            elif (more := event.completion_tokens - last.tokens) > 0:
                self.inter_token.observe((times.now - last.now) / more, more)
                last.now, last.tokens = times.now, event.completion_tokens
        if event.finish_reason is not None:
            self._finish(request, event)

    def abandoned(self, request: Request) -> None:
        """The client has left, or the request was cancelled, before its last event."""
        self._live.pop(request.request_id, None)
        self.finished[REASONS["cancelled"]] += 1

    def _finish(self, request: Request, event: Event) -> None:
        begun = self._live.pop(request.request_id, None)
        self.finished[REASONS[event.finish_reason or "error"]] += 1
        times, tokens = event.times, event.completion_tokens
        if times is None or event.finish_reason == "error":
            return
        if begun is None:
            self.prompt_tokens += len(request.prompt)
        self.end_to_end.observe(times.now - times.queued)
        self.queue.observe(times.admitted - times.queued)
        self.inference.observe(times.now - times.admitted)
        self.prefill.observe((times.first_token or times.now) - times.admitted)
        if times.first_token is not None:
            self.decode.observe(times.now - times.first_token)
            if tokens > 1:
                self.per_output_token.observe((times.now - times.first_token) / (tokens - 1))
        self.prompt_lengths.observe(len(request.prompt))
        self.completion_lengths.observe(tokens)
