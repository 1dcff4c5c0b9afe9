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
    """That a request wants to know the weights of the adapters, and how closely."""

    detail: ScalingsDetail
    """summary: their mean over the answer; tokens: for each token; full: for each token and module."""
    adapters: tuple[int, ...]
    """Numbers of the adapters that are told of, in the order of the answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One sequence to generate. A call with n > 1 or several prompts is several requests."""

    request_id: str
    """Unique among live requests."""
    prompt: tuple[int, ...]
    """Prompt token ids, at least one; control tokens included."""
    params: SamplingParams
    """`seed` is set by the time a request is submitted."""
    at_start: bool = True
    """Whether the answer begins a text of its own (after a control token, as in a chat) or continues the prompt's."""
    choice: AdapterChoice = BASE
    """Which adapters it uses, by number."""
    adapters: tuple[str, ...] = ()
    """Keys of these adapters, which tell an adapter from a later one with its number."""
    scalings: WantedScalings | None = None
    score_prompt: bool = False
    """Whether the prompt's own log-probabilities are wanted; `params.logprobs` says with how many alternatives."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenScalings:
    """The weights of the adapters that predicted one generated token."""

    text: str
    """The token's own bytes as text; U+FFFD where they are not UTF-8 by themselves."""
    weights: np.ndarray
    """float32 [A], a mean over the modules, or for `full` [M, A]; A as in `WantedScalings.adapters`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenLogprob:
    """Log-probability of one token, generated or of a prompt, and of the most likely tokens at its position."""

    token: int
    text: str
    """The token's own bytes as text; U+FFFD where they are not UTF-8 by themselves."""
    raw: bytes
    logprob: float
    """Natural logarithm; always finite: -9999.0 stands for a probability of zero."""
    top: tuple[TokenLogprob, ...] = ()
    """The `params.logprobs` most likely tokens, most likely first; empty `top` in each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """News of one request. `text` of all its events, joined, is the answer; the last event has a `finish_reason`.

    An event may carry no text (a token that ends inside a UTF-8 character, or text that may begin a stop string): such
    text comes with a later event.
    """

    request_id: str
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One entry for each token whose text this event completes; empty unless the request asked for them. Where it has
    `score_prompt`, an end-of-sequence token that was generated has an entry, too."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """Of a request with `score_prompt`: an entry for each further token of the prompt, from its second on. They come
    before all that is generated."""
    scalings: tuple[TokenScalings, ...] = ()
    """Likewise."""
    completion_tokens: int = 0
    """Tokens generated so far, an end-of-sequence token included."""
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    """The stop string that ended the answer, if one did."""
    error: str | None = None
    """What went wrong, where `finish_reason` is "error"."""


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
    """0 to 1 within the present state, where it is known."""
    running: int = 0
    """Requests in slots."""
    waiting: int = 0
    """Requests in the queue."""
    slots: int = 0
    queue_limit: int = 0
    generated_tokens: int = 0
    """Since the start, end-of-sequence tokens included."""


class QueueFullError(RuntimeError):
    """The bounded queue cannot take the requests; none of them was taken. Try again in `retry_after` seconds."""

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
"""Takes the events of one engine round; called on the engine's thread, so it hands over and returns at once."""


class Engine(Protocol):
    """All that the rest of the server needs of an engine, so that a fake can stand for it.
    `serving.engine.engine.JaxEngine` is the real one."""

    @property
    def status(self) -> EngineStatus: ...

    @property
    def adapter_shares(self) -> tuple[float, ...]:
        """The mean weight that X-LoRA gave each adapter lately, by number; empty where that is not known."""
        ...

    def start(self) -> None:
        """Begin loading on the engine's own thread and return at once; `status` tells how far it is."""
        ...

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """Queue all the requests or none. Each will get events, the last with a `finish_reason`, whatever happens.

        Raises:
          QueueFullError: the queue has not room for all of them.
          EngineUnavailableError: the engine does not take requests now.
          AdapterGoneError: an adapter of one of them was unloaded.
        """
        ...

    def cancel(self, request_id: str) -> None:
        """End a request early; its last event says "cancelled". Unknown and finished ids are ignored."""
        ...

    def between_rounds[T](self, run: Callable[[Any], T]) -> Future[T]:
        """Have `run` called with what the engine drives (the real one: a `mistral_jax.runtime.runner.Runner`), on the
        engine's own thread, between two rounds. What it returns or raises is the future's; until it begins, the future
        can be cancelled.

        For work that needs the device and is no request, such as putting an adapter there.
        """
        ...

    def unload_closed(self) -> None:
        """Have the adapters that were closed in the registry unloaded, each when its last request has ended."""
        ...

    def drain(self, timeout: float) -> None:
        """Refuse new requests, let the live ones finish for at most `timeout` seconds, end the rest, stop the
        thread."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelCard:
    """What holds for the served model with and without adapters."""

    max_model_len: int
    """Most tokens of prompt and answer together."""
    vocab_size: int
    """The model's; logit_bias ids must be below it."""
    fingerprint: str = ""
    """Changes when weights, configuration or versions change (`system_fingerprint`)."""
    defaults: dict[str, float] = field(default_factory=dict[str, float])
    """Sampling defaults from the model's generation_config.json."""
