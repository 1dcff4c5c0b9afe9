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
