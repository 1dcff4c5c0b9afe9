"""The messages between the HTTP side and the engine: plain data, no JAX, no web package."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.sampling_params import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "error"]
ScalingsDetail = Literal["summary", "tokens", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedScalings:
    """Which adapter weights a request asks for, and in what detail."""

    detail: ScalingsDetail
    """summary: mean over the completion; tokens: for each token; full: for each token and module."""
    adapters: tuple[int, ...]
    """Numbers of the adapters to report, in the order of the response."""


class Work(enum.Enum):
    """What a request asks for. `serving.engine.work` says what the engine does for each."""

    GENERATE = enum.auto()
    """A completion."""
    SCORE = enum.auto()
    """Log-probabilities of the prompt, with `params.logprobs` alternatives for each token; then a completion."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One sequence to run. A call with n > 1 or several prompts is several requests."""

    request_id: str
    """Unique among live requests."""
    prompt: tuple[int, ...]
    """Prompt token ids, at least one; control tokens included."""
    params: SamplingParams
    """`seed` must be set when the request is submitted."""
    at_start: bool = True
    """Whether the completion starts a new text (after a control token, as in a chat) or continues the prompt's."""
    choice: AdapterChoice = BASE
    """Which adapters it uses, by number."""
    adapters: tuple[str, ...] = ()
    """Keys of these adapters; unlike numbers, keys are never reused."""
    scalings: WantedScalings | None = None
    work: Work = Work.GENERATE
    reported_tokens: frozenset[int] = frozenset()
    """Control tokens that its events report, in `Event.items`: those by which tool calls and reasoning are found."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScalings:
    """The adapter weights that predicted one generated token."""

    text: str
    """The token's own bytes as text; U+FFFD where they are not UTF-8 by themselves."""
    weights: np.ndarray
    """float32 [A], the mean over the modules, or [M, A] for `full`; A as in `WantedScalings.adapters`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """Log-probability of one generated or prompt token, and of the most likely tokens at its position."""

    token: int
    text: str
    """The token's own bytes as text; U+FFFD where they are not UTF-8 by themselves."""
    raw: bytes
    logprob: float
    """Natural logarithm; always finite: -9999.0 stands for a probability of zero."""
    top: tuple[TokenLogprob, ...] = ()
    """The `params.logprobs` most likely tokens, most likely first; each with an empty `top`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Progress of one request. The joined `text` of its events is the completion; the last has a `finish_reason`.

    An event may carry no text (a token that ends inside a UTF-8 character, or text that may begin a stop string); that
    text comes with a later event.
    """

    request_id: str
    text: str = ""
    items: tuple[str | int, ...] = ()
    """The text, and the ids of the control tokens that the request wants reported, in order; empty if it wants none."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One entry for each token whose text this event completes; empty unless requested. With `Work.SCORE`, a
    generated end-of-sequence token has an entry too."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """With `Work.SCORE`: entries for the next prompt tokens, from the second token on. They come before any generated
    token."""
    scalings: tuple[TokenScalings, ...] = ()
    """One entry for each token whose text this event completes; empty unless requested."""
    completion_tokens: int = 0
    """Tokens generated so far, an end-of-sequence token included."""
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    """The stop string that ended the completion, if one did."""
    error: str | None = None
    """Error message if `finish_reason` is "error"."""


class EngineState(enum.StrEnum):
    LOADING = "loading"
    WARMING_UP = "warming up"
    READY = "ready"
    DRAINING = "draining"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineStatus:
    state: EngineState
    detail: str = ""
    """For people: what is being loaded, or why the engine failed."""
    progress: float | None = None
    """0 to 1 within the current state; None if unknown."""
    running: int = 0
    """Requests in slots."""
    waiting: int = 0
    """Requests in the queue."""
    slots: int = 0
    queue_limit: int = 0
    generated_tokens: int = 0
    """Since the start, end-of-sequence tokens included."""


class QueueFullError(RuntimeError):
    """The bounded queue has no room for all the requests; none was queued. Retry in `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class AdapterGoneError(RuntimeError):
    """An adapter that a request uses was unloaded before the request arrived."""


class EngineUnavailableError(RuntimeError):
    """The engine is loading, draining, failed or stopped."""

    def __init__(self, message: str, *, state: EngineState, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.state = state
        self.retry_after = retry_after


Deliver = Callable[[Sequence[Event]], None]
"""Receives the events of one engine round; called on the engine's thread, so it must not block."""


class Engine(Protocol):
    """The engine interface that the rest of the server uses; tests can implement it with a fake.
    `serving.engine.engine.JaxEngine` is the real one."""

    @property
    def status(self) -> EngineStatus: ...

    @property
    def adapter_shares(self) -> tuple[float, ...]:
        """The recent mean X-LoRA weight of each adapter, by number; empty if unknown."""
        ...

    def start(self) -> None:
        """Begin loading on the engine's own thread and return at once; `status` shows the progress."""
        ...

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """Queue all the requests or none. Each gets events, the last always with a `finish_reason`.

        Raises:
          QueueFullError: the queue has no room for all of them.
          EngineUnavailableError: the engine does not take requests now.
          AdapterGoneError: an adapter of one of them was unloaded.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """End a request early; its last event has `finish_reason` "cancelled". Unknown and finished ids are ignored."""
        ...

    def between_rounds[T](self, run: Callable[[Any], T]) -> Future[T]:
        """Call `run` on the engine's thread, between two rounds, with what the engine drives (the real one: a
        `mistral_jax.runtime.runner.Runner`). The future gets its result or exception, and can be cancelled until `run`
        starts.

        For device work that is not a request, such as loading an adapter.
        """
        ...

    def unload_closed(self) -> None:
        """Unload the adapters that are closed in the registry, each when its last request has ended."""
        ...

    def drain(self, timeout: float) -> None:
        """Refuse new requests, let live ones finish for at most `timeout` seconds, end the rest, stop the thread."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """Properties of the served model that do not depend on adapters."""

    max_model_len: int
    """Most tokens of prompt and completion together."""
    vocab_size: int
    """logit_bias ids must be below it."""
    fingerprint: str = ""
    """`system_fingerprint`: changes when weights, configuration or versions change."""
    defaults: dict[str, float] = field(default_factory=dict[str, float])
    """Sampling defaults from the model's generation_config.json."""
