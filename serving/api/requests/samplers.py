"""The order of samplers that a request may ask for: only the one in which they are applied here.

A sampler that a list leaves out is off in llama.cpp, so a list must name all that the request uses. Those that it does
not use may stand anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence

from mistral_jax.runtime.sampling.params import SAMPLERS, SamplingParams
from serving.api.errors import InvalidRequestError

_ALIASES = {"typical_p": "typ_p", "typical": "typ_p", "temp": "temperature", "nucleus": "top_p"}
_INDIFFERENT = {"top_n_sigma", "top_k"}
"""Those that keep the same tokens before and after the temperature."""


def check_samplers(samplers: Sequence[str] | None, params: SamplingParams) -> None:
    """Refuse a list of samplers whose result would be another than that of the order here.

    Raises:
      InvalidRequestError: it would, or a name is not known.
    """
    if samplers is None:
        return
    named = [_ALIASES.get(name.replace("-", "_"), name.replace("-", "_")) for name in samplers]
    if unknown := next((name for name in named if name not in SAMPLERS), None):
        raise InvalidRequestError(
            f"samplers: {unknown[:50]!r} is not known; expected some of {', '.join(SAMPLERS)}", param="samplers"
        )
    used = _used(params)
    expected, asked = [name for name in SAMPLERS if name in used], [name for name in named if name in used]
    if asked != expected and _around_temperature(asked) != _around_temperature(expected):
        raise InvalidRequestError(
            f"samplers: expected {', '.join(expected)} in this order, which is how this server applies the samplers "
            "that the request uses; leave samplers out",
            param="samplers",
        )


def _around_temperature(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The samplers without the temperature, and those to which its place matters with it."""
    return [name for name in names if name != "temperature"], [name for name in names if name not in _INDIFFERENT]


def _used(params: SamplingParams) -> set[str]:
    """The samplers that change the request's distribution."""
    penalties = (params.repetition_penalty, params.presence_penalty, params.frequency_penalty) != (1.0, 0.0, 0.0)
    used = {"penalties": penalties, "dry": params.uses_dry}
    if not params.is_greedy:
        used |= {
            "temperature": params.temperature != 1.0,
            "top_n_sigma": params.top_n_sigma > 0,
            "top_k": params.top_k > 0,
            "typ_p": params.typical_p < 1,
            "top_p": params.top_p < 1,
            "min_p": params.min_p > 0,
            "xtc": params.xtc_probability > 0,
        }
    return {name for name, is_used in used.items() if is_used}
