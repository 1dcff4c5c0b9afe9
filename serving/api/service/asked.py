"""What a request asks for, once its body is read: prompts, adapters, and what its response is to tell beside the text.
`requests/` makes these values, and `responses/` uses them."""

from __future__ import annotations

from dataclasses import dataclass

from mistral_jax.adapters.choice import BASE, AdapterChoice
from serving.engine.messages import ScalingsDetail, WantedScalings


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, encoded, with its text where the request may want it echoed."""

    tokens: tuple[int, ...]
    text: str = ""
    at_start: bool = True
    """See `serving.engine.messages.Request.at_start`."""
    cut: bool = False
    """Whether tokens were left out at its beginning; `text` is whole all the same."""


@dataclass(frozen=True, slots=True)
class UsageInStream:
    """Where a stream has token counts."""

    at_end: bool = False
    in_each_chunk: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class ToldScalings:
    """The weights of adapters that the response is to tell."""

    detail: ScalingsDetail
    adapters: tuple[str, ...]
    """Names, in the order of the weights."""
    modules: tuple[str, ...]
    """Names of the modules, or "*" for all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterUse:
    """The model and the adapters that a request runs with."""

    model_id: str
    """What the response names as its `model`."""
    choice: AdapterChoice = BASE
    keys: tuple[str, ...] = ()
    """See `serving.engine.messages.Request.adapters`."""
    scalings: WantedScalings | None = None
    told: ToldScalings | None = None
    label: str = ""
    """For counting: the adapter, "mixture", "weights" where they are fixed by hand, or nothing."""
