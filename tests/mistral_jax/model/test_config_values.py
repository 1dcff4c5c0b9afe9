"""Values of configuration files that are of another kind or out of range: one line that names them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mistral_jax.model.config import ConfigError, MistralConfig
from tests.cpu_time import cpu_seconds_at_most
from tests.mistral_jax.model.test_config import MINISTRAL, MISTRAL, PARAMS, YARN, without

SIZES = ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim"]
SIZES += ["num_key_value_heads", "max_position_embeddings", "sliding_window"]
PARAM_SIZES = ["dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size", "sliding_window"]
PARAM_SIZES += ["max_position_embeddings", "max_seq_len", "model_max_length"]
WRONG: list[Any] = [True, "32", 32.5, -1, 2**31, 10**400, math.nan, math.inf, [3], {"a": 3}]


def refused(error: pytest.ExceptionInfo[ConfigError], key: str) -> None:
    text = str(error.value)
    assert key in text
    assert "\n" not in text
    assert len(text) < 300


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("key", SIZES)
def test_a_size_that_is_none_is_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="expected") as error:
        MistralConfig.from_hf({**MISTRAL, key: value})
    refused(error, key)


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("key", PARAM_SIZES)
def test_a_size_of_params_that_is_none_is_refused_by_name(key: str, value: Any) -> None:
    if (key, value) == ("sliding_window", [3]):
        pytest.skip("a pattern of windows")
    with pytest.raises(ConfigError, match="expected") as error:
        MistralConfig.from_mistral({**PARAMS, key: value})
    refused(error, key)


@pytest.mark.parametrize("key", ["num_hidden_layers", "n_layers"])
def test_layers_beyond_all_models_are_refused_at_once(key: str) -> None:
    read, raw = (MistralConfig.from_mistral, PARAMS) if key == "n_layers" else (MistralConfig.from_hf, MISTRAL)
    with (
        cpu_seconds_at_most(1.0),
        pytest.raises(ConfigError, match=f"{key} is 2147483647; expected a whole number from 1 to 1024"),
    ):
        read({**raw, key: 2**31 - 1})


@pytest.mark.parametrize("value", [True, "0.5", -1e7, 1e300, 10**400, math.nan, math.inf, [0.5], {"a": 1}], ids=repr)
@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta", "factor", "attention_factor", "mscale", "beta_fast"])
def test_a_number_that_is_none_is_refused_by_name(key: str, value: Any) -> None:
    raw = {**MISTRAL, "rope_theta": 1e6, "rope_parameters": without(YARN, "rope_theta")}
    changed = {key: value} if key in ("rms_norm_eps", "rope_theta") else {"rope_parameters": {**YARN, key: value}}
    with pytest.raises(ConfigError) as error:
        MistralConfig.from_hf({**raw, **changed})
    refused(
        error,
        "rope parameters of their own" if value == {"a": 1} and key not in ("rms_norm_eps", "rope_theta") else key,
    )


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": "MistralForCausalLM"}, "architectures"),
        ({"architectures": [["MistralForCausalLM"]]}, "architecture"),
        ({"model_type": ["mistral"]}, "model_type"),
        ({"text_config": [1]}, "text_config"),
        ({"rope_scaling": "yarn"}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": 3}}, "rope_type"),
        ({"rope_parameters": {"rope_type": ["yarn"]}}, "rope_type"),
        ({"hidden_act": {}}, "hidden_act"),
        ({"tie_word_embeddings": "false"}, "tie_word_embeddings"),
        ({"eos_token_id": "2"}, "eos_token_id"),
        ({"eos_token_id": [2, True]}, "eos_token_id"),
        ({"bos_token_id": 1.5}, "bos_token_id"),
        ({"torch_dtype": ["float16"]}, "torch_dtype"),
        ({**MINISTRAL, "sliding_window": 7, "layer_types": "full_attention"}, "layer_types"),
        ({**MINISTRAL, "sliding_window": 7, "layer_types": [None]}, "layer_types"),
        ({"num_hidden_layers": "3" * 10**6}, "num_hidden_layers"),
        ({"quantization_config": {"a": "b" * 10**6}}, "quantization_config"),
    ],
)
def test_values_of_another_kind_are_refused_in_one_line(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        MistralConfig.from_hf({**MISTRAL, **changes})
    refused(error, named)
