"""What a configuration file says is what we build, or it is refused by name."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flax import nnx

from mistral_jax.model.config import ConfigError, MistralConfig, RopeConfig
from mistral_jax.model.mistral import Mistral
from tests.parity_table import GOLDENS, VARIANTS

MISTRAL: dict[str, Any] = {
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "vocab_size": 97,
    "hidden_size": 60,
    "intermediate_size": 44,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "sliding_window": None,
}
LLAMA = {**MISTRAL, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
MINISTRAL = {**MISTRAL, "architectures": ["MinistralForCausalLM"], "model_type": "ministral"}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 64}
MINISTRAL3 = {
    **MISTRAL,
    "architectures": ["Ministral3ForCausalLM"],
    "model_type": "ministral3",
    "head_dim": 10,
    "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.1},
}
ONE_FACTOR_EACH = {
    "rope_type": "longrope",
    "long_factor": [1.0, 2.0, 3.5, 4.0, 8.0],
    "short_factor": [1.0, 2.0, 3.5, 4.0, 8.0],
    "attention_factor": 1.0,
}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
PARAMS: dict[str, Any] = {
    "dim": 60,
    "n_layers": 3,
    "head_dim": 20,
    "hidden_dim": 44,
    "n_heads": 6,
    "n_kv_heads": 2,
    "norm_eps": 1e-5,
    "vocab_size": 97,
}


def without(raw: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM"),
        ({"architectures": []}, "mistral"),
        ({"architectures": None, "model_type": "gpt2"}, "gpt2"),
        ({"model_type": "mixtral"}, "mixtral"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"moe": {"num_experts": 8}}, "moe"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "longrope"),
        ({"rope_parameters": {"rope_type": "mrope"}}, "mrope"),
        ({"rope_parameters": {**ONE_FACTOR_EACH, "short_factor": [1.0] * 5}}, "longrope"),
        ({"rope_parameters": {**ONE_FACTOR_EACH, "attention_factor": None}}, "longrope"),
        ({"rope_parameters": {**ONE_FACTOR_EACH, "long_factor": [1.0, 0.0]}}, "long_factor"),
        (
            {"rope_parameters": {**ONE_FACTOR_EACH, "long_factor": [2.0], "short_factor": [2.0]}},
            "1 rope factors for heads of 10",
        ),
        ({"rope_parameters": {**LLAMA3, "frequency_factors": [1.0] * 4}}, "4 rope factors for heads of 10"),
        ({"rope_parameters": {**LLAMA3, "frequency_factors": []}}, "frequency_factors"),
        ({"rope_parameters": {**LLAMA3, "frequency_factors": ["1"] * 5}}, "frequency_factors"),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, "full_attention"),
        ({"rope_scaling": {"type": "linear"}}, "factor"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"use_qk_norm": True}, "use_qk_norm"),
        ({"num_attention_heads": 7}, "head_dim"),
        ({"num_key_value_heads": 4}, "num_key_value_heads"),
        ({"head_dim": 15}, "even"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"sliding_window": 0}, "sliding_window"),
        ({"hidden_size": None}, "hidden_size"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MistralConfig.from_hf({**MISTRAL, **changes})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"])
def test_a_missing_size_is_named(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        MistralConfig.from_hf(without(MISTRAL, key))


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        (
            {**MINISTRAL, "sliding_window": 9, "layer_types": ["full_attention", "chunked_attention"]},
            "chunked_attention",
        ),
        ({**MINISTRAL, "layer_types": ["sliding_attention"] * 3}, "sliding_window is null"),
        ({**MINISTRAL, "sliding_window": 9, "layer_types": ["full_attention"]}, "1 layer types for 3"),
        (without(MINISTRAL3, "rope_parameters"), "rope_parameters"),
        (
            {
                **LLAMA,
                "rope_parameters": {**YARN, "rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 4.0},
            },
            "high",
        ),
        ({**MINISTRAL3, "rope_parameters": {"rope_type": "default", "llama_4_scaling_beta": 0.1}}, "original_max"),
        ({**MINISTRAL3, "rope_parameters": YARN}, "llama_4_scaling_beta is missing"),
        (
            {"architectures": ["Mistral3ForConditionalGeneration"], "text_config": {"model_type": "mistral4"}},
            "mistral4",
        ),
        (
            {
                "architectures": ["Mistral3ForConditionalGeneration"],
                "text_config": without(MISTRAL, "architectures"),
                "quantization_config": {"quant_method": "fp8"},
            },
            "fp8",
        ),
    ],
)
def test_contradictions_are_refused_by_name(raw: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        MistralConfig.from_hf(raw)


def test_harmless_values_of_those_keys_pass() -> None:
    MistralConfig.from_hf(
        {
            **MISTRAL,
            "quantization_config": None,
            "partial_rotary_factor": 1.0,
            "num_local_experts": 1,
            "hidden_act": "swish",
        }
    )


# ---- sliding windows


@pytest.mark.parametrize(
    ("raw", "windows"),
    [
        (MISTRAL, (None,) * 3),
        ({**MISTRAL, "sliding_window": 7}, (7,) * 3),
        (without(MISTRAL, "sliding_window"), (4096,) * 3),
        (without(MINISTRAL, "sliding_window"), (4096,) * 3),
        (without(MINISTRAL3, "sliding_window"), (None,) * 3),
        ({**LLAMA, "sliding_window": 7}, (None,) * 3),
        # None of the reference's classes reads `use_sliding_window`.
        ({**MISTRAL, "sliding_window": 7, "use_sliding_window": False}, (7,) * 3),
        ({**MINISTRAL, "sliding_window": 7, "use_sliding_window": False}, (7,) * 3),
        ({**MINISTRAL3, "sliding_window": 7, "use_sliding_window": False}, (7,) * 3),
        # As in the reference implementation, `mistral` and `ministral3` have one window for all layers.
        ({**MISTRAL, "sliding_window": 7, "layer_types": ["full_attention"] * 3}, (7,) * 3),
        ({**MINISTRAL3, "sliding_window": 7, "layer_types": ["full_attention"] * 3}, (7,) * 3),
        (
            {
                **MINISTRAL,
                "sliding_window": 7,
                "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            },
            (None, 7, None),
        ),
    ],
)
def test_null_and_missing_windows_are_told_apart(raw: dict[str, Any], windows: tuple[int | None, ...]) -> None:
    assert MistralConfig.from_hf(raw).layer_windows == windows


# ---- defaults


def test_missing_kv_heads_mean_the_class_default_and_null_means_all() -> None:
    heads = {**MISTRAL, "num_attention_heads": 16, "head_dim": 10}
    assert MistralConfig.from_hf(without(heads, "num_key_value_heads")).num_kv_heads == 8
    assert MistralConfig.from_hf({**heads, "num_key_value_heads": None}).num_kv_heads == 16
    assert MistralConfig.from_hf(without(LLAMA, "num_key_value_heads")).num_kv_heads == 6


def test_missing_head_dim_is_hidden_size_over_heads() -> None:
    assert MistralConfig.from_hf(MISTRAL).head_dim == 10
    assert MistralConfig.from_hf({**MISTRAL, "head_dim": None}).head_dim == 10
    assert MistralConfig.from_hf({**MISTRAL, "head_dim": 24}).head_dim == 24
    assert MistralConfig.from_hf(without(MINISTRAL3, "head_dim")).head_dim == 128


def test_missing_norm_epsilon_and_length_are_the_class_default() -> None:
    assert MistralConfig.from_hf(MISTRAL).rms_norm_eps == 1e-6
    assert MistralConfig.from_hf(MINISTRAL3).rms_norm_eps == 1e-5
    assert MistralConfig.from_hf(MISTRAL).max_position_embeddings == 131072
    assert MistralConfig.from_hf(LLAMA).max_position_embeddings == 2048


@pytest.mark.parametrize(
    ("value", "ids"), [(2, (2,)), ([2, 5, 7], (2, 5, 7)), (None, ()), ([], ())], ids=["one", "list", "null", "empty"]
)
def test_end_of_sequence_ids_may_be_one_or_many(value: Any, ids: tuple[int, ...]) -> None:
    assert MistralConfig.from_hf({**MISTRAL, "eos_token_id": value}).eos_token_ids == ids


def test_missing_special_ids_are_the_class_default() -> None:
    config = MistralConfig.from_hf(MISTRAL)
    assert (config.bos_token_id, config.eos_token_ids) == (1, (2,))


def test_dtype_of_either_version_is_read() -> None:
    assert MistralConfig.from_hf({**MISTRAL, "torch_dtype": "float16"}).dtype == "float16"
    assert MistralConfig.from_hf({**MISTRAL, "dtype": "bfloat16"}).dtype == "bfloat16"
    assert MistralConfig.from_hf(MISTRAL).dtype is None


# ---- wrapped models


def test_a_wrapped_text_model_is_unwrapped() -> None:
    outer = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": without(MISTRAL, "architectures"),
        "eos_token_id": 5,
        "dtype": "bfloat16",
    }
    config = MistralConfig.from_hf(outer)
    assert (config.hidden_size, config.eos_token_ids, config.dtype) == (60, (5,), "bfloat16")
    assert not config.tie_word_embeddings
    assert MistralConfig.from_hf({**outer, "tie_word_embeddings": True}).tie_word_embeddings


# ---- rope


@pytest.mark.parametrize(
    ("version_4", "version_5", "expected"),
    [
        ({}, {}, RopeConfig(theta=1e4)),
        ({"rope_theta": 1e6}, {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}, RopeConfig(theta=1e6)),
        (
            {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}},
            {"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4}},
            RopeConfig(theta=5e5, kind="linear", factor=4.0),
        ),
        (
            {
                "rope_theta": 1e6,
                "rope_scaling": {**without(YARN, "rope_theta"), "beta_fast": 4, "attention_factor": 1.5},
            },
            {"rope_parameters": {**YARN, "beta_fast": 4, "attention_factor": 1.5}},
            RopeConfig(
                theta=1e6,
                kind="yarn",
                factor=16.0,
                original_max_position_embeddings=64,
                beta_fast=4.0,
                attention_factor=1.5,
            ),
        ),
    ],
    ids=["none", "theta", "linear", "yarn"],
)
def test_rope_of_versions_4_and_5_is_the_same(
    version_4: dict[str, Any], version_5: dict[str, Any], expected: RopeConfig
) -> None:
    assert MistralConfig.from_hf({**MISTRAL, **version_4}).rope == expected
    assert MistralConfig.from_hf({**MISTRAL, **version_5}).rope == expected


@pytest.mark.parametrize(
    ("extra", "factor"),
    [
        ({}, 0.1 * math.log(16) + 1),
        ({"attention_factor": 1.3}, 1.3),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 0.0}, 0.1 * math.log(16) + 1),
        ({"mscale": 0.7, "mscale_all_dim": 1.4}, (0.07 * math.log(16) + 1) / (0.14 * math.log(16) + 1)),
    ],
)
def test_yarn_attention_factor_is_resolved(extra: dict[str, float], factor: float) -> None:
    rope = MistralConfig.from_hf({**MISTRAL, "rope_parameters": {**YARN, **extra}}).rope
    assert rope.attention_factor == pytest.approx(factor)


def test_longrope_with_one_set_of_factors_is_a_factor_for_each_frequency() -> None:
    rope = MistralConfig.from_hf({**MISTRAL, "rope_parameters": {"rope_theta": 5e5, **ONE_FACTOR_EACH}}).rope
    assert rope == RopeConfig(theta=5e5, kind="factors", frequency_factors=(1.0, 2.0, 3.5, 4.0, 8.0))


def test_exact_factors_of_a_llama_3_rope_are_kept_beside_its_parameters() -> None:
    parameters = {**LLAMA3, "frequency_factors": [1.0, 2.0, 3.5, 4.0, 8.0]}
    rope = MistralConfig.from_hf({**MISTRAL, "rope_parameters": parameters}).rope
    assert (rope.kind, rope.factor, rope.frequency_factors) == ("llama3", 8.0, (1.0, 2.0, 3.5, 4.0, 8.0))


def test_yarn_without_an_original_context_takes_the_models_own() -> None:
    raw = {**MISTRAL, "max_position_embeddings": 512, "rope_parameters": {"rope_type": "yarn", "factor": 2.0}}
    assert MistralConfig.from_hf(raw).rope.original_max_position_embeddings == 512


def test_attention_temperature_of_ministral_3() -> None:
    config = MistralConfig.from_hf(MINISTRAL3)
    assert (config.attention_temperature_beta, config.attention_temperature_length) == (0.1, 64)


@pytest.mark.parametrize("raw", [MISTRAL, LLAMA, MINISTRAL])
def test_other_classes_ignore_an_attention_temperature_and_say_so(
    raw: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    parameters = MINISTRAL3["rope_parameters"]
    config = MistralConfig.from_hf({**raw, "rope_parameters": parameters})
    assert config == MistralConfig.from_hf({**raw, "rope_parameters": without(parameters, "llama_4_scaling_beta")})
    assert config.attention_temperature_beta == 0
    assert [record.message for record in caplog.records] == [
        f"models of type {raw['model_type']} do not know llama_4_scaling_beta (as in transformers): ignored"
    ]
    text = {
        "architectures": ["Mistral3ForConditionalGeneration"],
        "text_config": {**MISTRAL, "rope_parameters": parameters},
    }
    assert MistralConfig.from_hf(text).attention_temperature_beta == 0
    text["text_config"] = MINISTRAL3
    assert MistralConfig.from_hf(text).attention_temperature_beta == 0.1


def test_the_length_of_a_temperature_is_that_of_the_rope() -> None:
    """yarn and llama3 take the context beside their parameters before that among them; a plain rope knows only the
    latter."""
    beside = {**MINISTRAL3, "original_max_position_embeddings": 32}
    assert MistralConfig.from_hf(beside).attention_temperature_length == 32
    plain = {"rope_type": "default", "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64}
    assert MistralConfig.from_hf({**beside, "rope_parameters": plain}).attention_temperature_length == 64


@pytest.mark.parametrize("key", ["attention_bias", "mlp_bias"])
def test_only_llama_has_biases(key: str) -> None:
    assert getattr(MistralConfig.from_hf({**LLAMA, key: True}), key)
    for raw in (MISTRAL, MINISTRAL, MINISTRAL3):
        assert not getattr(MistralConfig.from_hf({**raw, key: True}), key)


# ---- params.json


def test_mistrals_own_format() -> None:
    config = MistralConfig.from_mistral({**PARAMS, "rope_theta": 1e8})
    assert config == MistralConfig(
        vocab_size=97,
        hidden_size=60,
        intermediate_size=44,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_dim=20,
        rope=RopeConfig(theta=1e8),
        dtype="bfloat16",
    )


def test_missing_theta_depends_on_the_window_as_in_mistral_inference() -> None:
    assert MistralConfig.from_mistral(PARAMS).rope.theta == 1e6
    assert MistralConfig.from_mistral({**PARAMS, "sliding_window": 4096}).rope.theta == 1e4


def test_window_patterns_repeat_over_the_layers() -> None:
    config = MistralConfig.from_mistral({**PARAMS, "n_layers": 5, "sliding_window": [None, 7]})
    assert config.layer_windows == (None, 7, None, 7, None)


def test_yarn_in_params_equals_yarn_in_config() -> None:
    params = {
        **PARAMS,
        "rope_theta": 1e6,
        "yarn": {"factor": 16, "beta": 32, "alpha": 1, "original_max_position_embeddings": 64, "apply_scale": False},
        "llama_4_scaling": {"beta": 0.1, "original_max_position_embeddings": 64},
        "tied_embeddings": True,
    }
    theirs = MistralConfig.from_hf(
        {**MINISTRAL3, "rope_parameters": {**MINISTRAL3["rope_parameters"], "mscale": 1.0, "mscale_all_dim": 1.0}}
    )
    ours = MistralConfig.from_mistral(params)
    assert ours.rope == theirs.rope
    assert ours.attention_temperature_beta == theirs.attention_temperature_beta
    assert ours.attention_temperature_length == theirs.attention_temperature_length
    assert ours.tie_word_embeddings
    assert ours.max_position_embeddings == 1024
    scaled = MistralConfig.from_mistral({**params, "yarn": {**params["yarn"], "apply_scale": True}})
    assert scaled.rope.attention_factor == pytest.approx(0.1 * math.log(16) + 1)


@pytest.mark.parametrize("key", ["moe", "quantization", "q_lora_rank", "kv_lora_rank", "lora"])
def test_params_that_are_not_implemented_are_refused_by_name(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        MistralConfig.from_mistral({**PARAMS, key: {"a": 1}})


# ---- folders


def test_a_folder_without_configuration_says_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"neither config\.json nor params\.json"):
        MistralConfig.from_folder(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]", "\xff", ""])
def test_a_broken_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ConfigError, match=r"config\.json"):
        MistralConfig.from_folder(tmp_path)


def test_config_json_comes_before_params_json(tmp_path: Path) -> None:
    (tmp_path / "params.json").write_text(json.dumps(PARAMS))
    assert MistralConfig.from_folder(tmp_path).head_dim == 20
    (tmp_path / "config.json").write_text(json.dumps(MISTRAL))
    assert MistralConfig.from_folder(tmp_path).head_dim == 10


# ---- counts


@pytest.mark.parametrize("variant", VARIANTS)
def test_parameter_count_is_that_of_the_model(variant: str) -> None:
    config = MistralConfig.from_folder(GOLDENS / variant)
    model = nnx.eval_shape(lambda: Mistral(config, rngs=nnx.Rngs(0)))
    # Of the model's own shapes, without the zeros around ragged matrices.
    counted = sum(int(np.prod(value.get_value().shape)) for _, value in nnx.to_flat_state(nnx.state(model)))
    assert config.num_parameters == counted


def test_parameter_count_of_the_7b_is_the_published_one() -> None:
    shape = {"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
    config = MistralConfig.from_hf({**MISTRAL, **shape, "num_attention_heads": 32, "num_key_value_heads": 8})
    assert config.num_parameters == 7_241_732_096
    assert config.kv_bytes_per_token(2) == 2 * 32 * 8 * 128 * 2
