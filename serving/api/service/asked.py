"""The contents of a request after its body is parsed: prompts, adapters, and what the response has besides the text.
`requests/` makes these values, and `responses/` uses them."""

from __future__ import annotations

from dataclasses import dataclass

from mistral_jax.adapters.choice import BASE, AdapterChoice
from serving.engine.messages import ScalingsDetail, WantedScalings


@dataclass(frozen=True, slots=True)
class Prompt:
    """One encoded prompt, with its text if it may be echoed."""

    tokens: tuple[int, ...]
    text: str = ""
    at_start: bool = True
    """See `serving.engine.messages.Request.at_start`."""
    cut: bool = False
    """Whether it was truncated from the left; `text` is still the whole text."""


@dataclass(frozen=True, slots=True)
class UsageInStream:
    """Which chunks of a stream have token counts."""

    at_end: bool = False
    in_each_chunk: bool = False


@dataclass(frozen=True, slots=True)
class TimesInStream:
    """What a stream says of times besides those in its last chunk."""

    in_each_chunk: bool = False
    progress: bool = False
    """Whether it tells how much of the prompt has been run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reported:
    """What a response tells about tokens, besides the log-probabilities of the completion."""

    prompt_logprobs: int | None = None
    """Number of most likely tokens to compute for each token of the prompt; None: no log-probabilities of the
    prompt."""
    own_prompt_logprobs: int | None = None
    """Number of those in the response's field `prompt_logprobs`; None: it has none."""
    echoes_logprobs: bool = False
    """Whether the prompt's log-probabilities are at the beginning of each choice's own."""
    token_ids: bool = False
    """Whether token ids are returned."""
    tokens_by_id: bool = False
    """Whether log-probabilities name tokens by their ids."""


TEXT_ONLY = Reported()


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportedScalings:
    """The adapter weights to report in the response."""

    detail: ScalingsDetail
    adapters: tuple[str, ...]
    """Names, in the order of the weights."""
    modules: tuple[str, ...]
    """Names of the modules, or "*" for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """The model and the adapters that a request runs with."""

    model_id: str
    """`model` in the response."""
    choice: AdapterChoice = BASE
    keys: tuple[str, ...] = ()
    """See `serving.engine.messages.Request.adapters`."""
    scalings: WantedScalings | None = None
    reported: ReportedScalings | None = None
    label: str = ""
    """For the metrics: the adapter, "mixture", "weights" if the request fixes them, or empty."""
