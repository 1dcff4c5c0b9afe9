"""A params.json becomes the config.json of the same model."""

from __future__ import annotations

from typing import Any

import pytest

from conversion.config.params_to_config import params_to_config
from conversion.weights.tensor_source import WeightFileError
from mistral_jax.model.config import MistralConfig

PARAMS: dict[str, Any] = {
    "dim": 4096,
    "n_layers": 4,
    "head_dim": 128,
    "hidden_dim": 14336,
    "n_heads": 32,
    "n_kv_heads": 8,
    "norm_eps": 1e-5,
    "vocab_size": 32000,
}
YARN = {"factor": 16, "original_max_position_embeddings": 16384, "beta": 32, "alpha": 1}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sliding_window": 4096},
        {"rope_theta": 1e8, "max_seq_len": 32768},
        {"sliding_window": [None, 32768, 32768, 32768], "max_position_embeddings": 65536},
        {"yarn": {**YARN, "apply_scale": True}},
        {"yarn": {**YARN, "apply_scale": False}, "rope_theta": 1e6, "tied_embeddings": True},
        {
            "yarn": {**YARN, "apply_scale": False},
            "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 16384},
        },
        {"head_dim": None, "n_kv_heads": None},
    ],
)
def test_the_model_is_the_same(changes: dict[str, Any]) -> None:
    params = {**PARAMS, **changes}
    expected = MistralConfig.from_mistral(params)
    found = MistralConfig.from_hf(params_to_config(params))
    # Without a beta the length of the temperature means nothing.
    unset = {"architecture": ""} | ({} if expected.attention_temperature_beta else {"attention_temperature_length": 0})
    assert {**vars(found), **unset} == {**vars(expected), **unset}


def test_what_is_not_implemented_is_refused() -> None:
    with pytest.raises(WeightFileError, match="'moe' is not implemented"):
        params_to_config({**PARAMS, "moe": {"num_experts": 8}})
    with pytest.raises(WeightFileError, match="several sizes"):
        params_to_config({**PARAMS, "sliding_window": [4096, 8192]})
    with pytest.raises(WeightFileError, match="dim is missing"):
        params_to_config({key: value for key, value in PARAMS.items() if key != "dim"})


@pytest.mark.parametrize("value", [True, "32", 2**31, 0, [4], {"a": 1}, float("nan"), 10**400], ids=repr)
@pytest.mark.parametrize("key", ["n_layers", "dim", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "max_seq_len"])
def test_values_of_another_kind_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(WeightFileError, match=rf"params\.json: {key} is .*; expected a whole number"):
        params_to_config({**PARAMS, key: value})
