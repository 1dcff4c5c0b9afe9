"""`samplers`: only orders that give what this server's order gives."""

from __future__ import annotations

from typing import Any

import pytest

from mistral_jax.runtime.sampling.params import SAMPLERS, SamplingParams
from serving.api.errors import InvalidRequestError
from serving.api.requests.samplers import check_samplers

LLAMA_CPP = ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"]
"""Its default order."""


@pytest.mark.parametrize(
    ("samplers", "settings"),
    [
        (list(SAMPLERS), {"top_p": 0.5, "xtc_probability": 0.5, "dry_multiplier": 1.0, "typical_p": 0.9, "min_p": 0.1}),
        # The temperature comes last there; where it is 1, or only whole numbers of tokens are kept, that is the same.
        (LLAMA_CPP, {"top_p": 0.5, "min_p": 0.1}),
        (LLAMA_CPP, {"temperature": 0.5, "top_k": 40, "top_n_sigma": 1.0, "repetition_penalty": 1.1}),
        (LLAMA_CPP, {"temperature": 0.0, "top_p": 0.5}),
        (["top-k", "temp"], {"temperature": 0.5, "top_k": 3}),
        (["typical_p"], {"typical_p": 0.5}),
        ([], {}),
        (["xtc", "top_k"], {}),
    ],
)
def test_orders_of_the_same_result(samplers: list[str], settings: dict[str, Any]) -> None:
    check_samplers(samplers, SamplingParams(**settings))


@pytest.mark.parametrize(
    ("samplers", "settings", "told"),
    [
        (LLAMA_CPP, {"temperature": 0.5, "top_p": 0.5}, "expected temperature, top_p in this order"),
        (["top_p", "top_k"], {"top_k": 3, "top_p": 0.5}, "expected top_k, top_p in this order"),
        (["top_p"], {"top_k": 3, "top_p": 0.5}, "expected top_k, top_p in this order"),
        ([], {"temperature": 0.5}, "expected temperature in this order"),
        (["mirostat"], {}, "'mirostat' is not known"),
        (
            ["temperature", "penalties"],
            {"temperature": 0.5, "presence_penalty": 1.0},
            "expected penalties, temperature",
        ),
        (["top_k", "top_k"], {"top_k": 3}, "expected top_k in"),
    ],
)
def test_others_are_refused(samplers: list[str], settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InvalidRequestError, match=told) as caught:
        check_samplers(samplers, SamplingParams(**settings))
    assert caught.value.param == "samplers"
