"""The messages between the HTTP side and the engine: plain data, no JAX, no web package."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.grammar.constraint import Constraint
from mistral_jax.runtime.pooling import Pooling
from mistral_jax.runtime.sampling.params import SamplingParams

FinishReason = Literal["stop", "length", "cancelled", "error"]
ScalingsDetail = Literal["summary", "tokens", "full"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedScalings:
    """Which adapter weights a request asks for, and in what detail."""

    detail: ScalingsDetail
    """summary: mean over the completion; tokens: for each token; full: for each token and module."""
    adapters: tuple[int, ...]
    """Numbers of the adapters to report, in the order of the response."""


class StartConstraint(Protocol):
    """A compiled constraint, shared between sequences. Implemented by `mistral_jax.grammar`."""

    def start(self, *, at_start: bool) -> Constraint:
        """The state of one sequence, before its first token; takes well under a millisecond.

        Args:
          at_start: see `Request.at_start`.
        """
        ...


class Work(enum.Enum):
    """What a request asks for. `serving.engine.work` says what the engine does for each."""

    GENERATE = enum.auto()
    """A completion."""
    SCORE = enum.auto()
    """Log-probabilities of the prompt, with `prompt_logprobs` alternatives for each token; then a completion."""
    EMBED = enum.auto()
    """A vector for the prompt, by `pooling`; `params.max_tokens` must be 0."""


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
    constraint: StartConstraint | None = None
    """What the completion must match; None: anything."""
    work: Work = Work.GENERATE
    progress: bool = False
    """Whether it gets events while its prompt is run."""
    pooling: Pooling = "mean"
    """With `Work.EMBED`: how the prompt's hidden states become one vector."""
    prompt_logprobs: int = 0
    """With `Work.SCORE`: number of most likely tokens to report for each token of the prompt."""
    logprob_of_end: bool = False
    """Whether an end-of-sequence token that ends the completion has an entry in `Event.logprobs`."""
    token_ids: bool = False
    """Whether events carry the ids of the generated tokens."""
    priority: int = 0
    """Of the requests of one caller that wait, those with lower numbers are admitted earlier."""
    caller: int = 0
    """Who asks. Callers share queue and slots evenly."""
    uses_cache: bool = True
    """Whether its prompt may be found in the cache, and stay there for others."""
    cache_salt: str = ""
    """It shares what is in the cache with requests of the same salt only."""
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
    """The requested number of most likely tokens, most likely first; each with an empty `top`."""
    rank: int = 0
    """1 for the most likely token: one more than the number of tokens that are more likely; 0 if unknown."""


class Times(NamedTuple):
    """When things happened to a request: seconds of `time.monotonic`."""

    queued: float
    admitted: float
    """It got a slot."""
    first_token: float | None
    """Its first token was read; None: not yet."""
    now: float
    """The event's own results were read."""


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
    """One entry for each token whose text this event completes; empty unless requested. With `Request.logprob_of_end`,
    the end-of-sequence token has an entry too."""
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    """With `Work.SCORE`: entries for the next prompt tokens, from the second token on. They come before any generated
    token."""
    scalings: tuple[TokenScalings, ...] = ()
    """One entry for each token whose text this event completes; empty unless requested."""
    token_ids: tuple[int, ...] = ()
    """All tokens generated since the last event, whether their text is complete or not; empty unless requested."""
    completion_tokens: int = 0
    """Tokens generated so far, an end-of-sequence token included."""
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    """The stop string, or the id of `stop_token_ids`, that ended the completion; None for anything else."""
    mean_logprob: float | None = None
    """In the last event, if log-probabilities were requested: the mean over all generated tokens."""
    error: str | None = None
    """Error message if `finish_reason` is "error"."""
    refused: bool = False
    """With an error: whether the request itself is its cause."""
    embedding: np.ndarray | None = None
    """float32 [D], not normalised, with the last event of `Work.EMBED`."""
    prompt_processed: int = 0
    """Prompt tokens that have been run, if that is what the event tells; see `Request.progress`."""
    times: Times | None = None
    """None for events without results, such as that of a cancelled request."""
    cached_tokens: int = 0
    """Tokens of the prompt that were in the cache."""

    def completed(self, times: Times, cached_tokens: int) -> Event:
        """This event, with what the engine knows. Not a copy: an event is made for one receiver, and there are many."""
        object.__setattr__(self, "times", times)
        object.__setattr__(self, "cached_tokens", cached_tokens)
        return self


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
    cache_usage: float = 0.0
    """Fraction of the blocks of the KV cache that sequences have."""
    cache_queries: int = 0
    """Prompt tokens that might have been in the cache, since the start."""
    cache_hits: int = 0
    """Prompt tokens that were."""
    proposed: int = 0
    """Tokens that were looked up in earlier text and proposed, since the start, at most."""
    accepted: int = 0
    """Those that came next."""
    put_back: int = 0
    """Sequences that had to make room for others, since the start; they went on later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotStatus:
    """One slot, and how far the request in it is."""

    id: int
    params: SamplingParams | None = None
    """Of the request in it; None: the slot is free."""
    prompt_tokens: int = 0
    processed: int = 0
    """Prompt tokens that have been prefilled, or are being."""
    generated: int = 0
    """Tokens of the completion so far."""
    max_tokens: int = 0
    """Most tokens of the completion."""
    adapters: tuple[str, ...] = ()
    """Keys of the adapters that it uses."""

    @property
    def is_processing(self) -> bool:
        return self.params is not None

    @property
    def held(self) -> int:
        """Tokens in its cache."""
        return self.processed + self.generated


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

    def slots(self) -> Sequence[SlotStatus]:
        """All slots, in order; empty while the model loads."""
        ...

    @property
    def adapter_shares(self) -> tuple[float, ...]:
        """The recent mean X-LoRA weight of each adapter, by number; empty if unknown."""
        ...

    def start(self) -> None:
        """Begin loading on the engine's own thread and return at once; `status` shows the progress."""
        ...

    def submit(self, requests: Sequence[Request], deliver: Deliver) -> None:
        """Queue all the requests, which have one caller, or none of them. Each gets events, the last always with a
        `finish_reason`.

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
    hidden_size: int = 0
    """Dimensions of an embedding."""
    fingerprint: str = ""
    """`system_fingerprint`: changes when weights, configuration or versions change."""
    defaults: dict[str, float] = field(default_factory=dict[str, float])
    """Sampling defaults from the model's generation_config.json."""
    eos_ids: frozenset[int] = frozenset()
    """Tokens that end a completion."""

    @property
    def sampling_defaults(self) -> dict[str, Any]:
        """`defaults`, with the types that `SamplingParams` has."""
        return {name: int(value) if name == "top_k" else value for name, value in self.defaults.items()}
