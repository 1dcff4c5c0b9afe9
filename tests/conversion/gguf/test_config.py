"""The configuration of a GGUF file is that of the model it was made from, or the file is refused by name.

What llama.cpp's converter wrote of the models in `model_configs` is in `tests/goldens/gguf/metadata.json`.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conversion.gguf.config import fields_of, hf_config, shape_of, sliding_window
from conversion.gguf.container.file import GGUFError
from conversion.gguf.writing.from_config import gguf_architecture, gguf_metadata, rope_factors
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.rope import inverse_frequencies
from tests.conversion.fake_gguf import FakeGGUF, model
from tests.conversion.model_configs import CONFIGS

GOLDENS = Path(__file__).parents[2] / "goldens" / "parity"
CONVERTED: dict[str, Any] = json.loads((GOLDENS.parent / "gguf" / "metadata.json").read_text())


PLAIN: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Some Model",
    "llama.block_count": 3,
    "llama.context_length": 512,
    "llama.embedding_length": 60,
    "llama.feed_forward_length": 44,
    "llama.attention.head_count": 6,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
}
MINISTRAL: dict[str, Any] = {
    **{key.replace("llama.", "mistral3."): value for key, value in PLAIN.items()},
    "general.architecture": "mistral3",
    "mistral3.rope.scaling.type": "yarn",
    "mistral3.rope.scaling.factor": 16.0,
    "mistral3.rope.scaling.original_context_length": 32,
    "mistral3.rope.scaling.yarn_log_multiplier": 1.0,
    "mistral3.attention.temperature_scale": float(np.float32(0.1)),
}


def plain(changes: dict[str, Any] | None = None, **kwargs: Any) -> FakeGGUF:
    metadata = {key: value for key, value in {**PLAIN, **(changes or {})}.items() if value is not None}
    return model(metadata, vocab_size=97, **kwargs)


def read(gguf: FakeGGUF) -> MistralConfig:
    return MistralConfig.from_hf(hf_config(gguf))  # pyright: ignore


def token_ids(config: dict[str, Any]) -> dict[str, int]:
    text = config.get("text_config", config)
    eos = text["eos_token_id"]
    return {
        "tokenizer.ggml.bos_token_id": text["bos_token_id"],
        "tokenizer.ggml.eos_token_id": eos[0] if isinstance(eos, list) else eos,
    }


def comparable(config: MistralConfig) -> MistralConfig:
    """Without what a file cannot tell or tells otherwise: the class, the type, all but one end id, and exact rope
    factors."""
    rope = replace(config.rope, frequency_factors=(), attention_factor=round(config.rope.attention_factor, 6))
    length = config.attention_temperature_length if config.attention_temperature_beta else 0
    return replace(
        config,
        architecture="",
        dtype=None,
        eos_token_ids=config.eos_token_ids[:1],
        rope=rope,
        attention_temperature_length=length,
    )


# ---- published models


@pytest.mark.parametrize("name", CONFIGS)
def test_published_models_as_llama_cpp_converts_them(name: str) -> None:
    config, converted = CONFIGS[name], CONVERTED[name]
    metadata = {key: value for key, (value, _) in converted["metadata"].items()}
    metadata = {key: float(np.float32(v)) if isinstance(v, float) else v for key, v in metadata.items()}
    expected = MistralConfig.from_hf(config)
    factors = converted["rope_factors"]
    gguf = model(
        {"general.architecture": converted["architecture"], "general.name": name, **metadata, **token_ids(config)},
        vocab_size=expected.vocab_size,
        tied=expected.tie_word_embeddings,
        rope_factors=None if factors is None else np.array(factors, np.float32),
    )
    actual = read(gguf)
    if name == "Ministral-8B-Instruct-2410":  # a window as long as the context is none, and the file does not say it
        expected = replace(expected, layer_windows=(None,) * expected.num_layers)
    assert comparable(actual) == comparable(expected)
    np.testing.assert_allclose(
        inverse_frequencies(actual.rope, actual.head_dim),
        inverse_frequencies(expected.rope, actual.head_dim),
        rtol=1e-6,
    )
    if factors is not None:
        assert actual.rope.frequency_factors == tuple(factors)


@pytest.mark.parametrize("name", CONFIGS)
def test_published_models_as_we_write_them(name: str) -> None:
    config = CONFIGS[name]
    expected = MistralConfig.from_hf(config)
    actual = read(written(config))
    assert comparable(actual) == comparable(expected)


def written(config: dict[str, Any]) -> FakeGGUF:
    """What we would write for a configuration."""
    expected = MistralConfig.from_hf(config)
    metadata = {
        key: float(np.float32(value))
        if isinstance(value, float)
        else np.array(value)
        if isinstance(value, list)
        else value
        for key, value in gguf_metadata(config).items()
    }
    head = {"general.architecture": gguf_architecture(config), "general.name": "x", **metadata}
    eos = {"tokenizer.ggml.eos_token_id": expected.eos_token_ids[0]} if expected.eos_token_ids else {}
    bos = {"tokenizer.ggml.bos_token_id": expected.bos_token_id} if expected.bos_token_id is not None else {}
    extra: dict[str, tuple[int, ...]] = {}
    if expected.attention_bias:
        extra["blk.0.attn_q.bias"] = (expected.num_heads * expected.head_dim,)
    if expected.mlp_bias:
        extra["blk.0.ffn_up.bias"] = (expected.intermediate_size,)
    return model(
        {**head, **eos, **bos},
        vocab_size=expected.vocab_size,
        tied=expected.tie_word_embeddings,
        rope_factors=rope_factors(config),
        extra=extra,
    )


HF_GOLDENS = sorted(path.parent.name for path in GOLDENS.glob("*/config.json"))


@pytest.mark.parametrize("name", [name for name in HF_GOLDENS if name != "yarn-untruncated"])
def test_every_kind_of_configuration_survives(name: str) -> None:
    config = json.loads((GOLDENS / name / "config.json").read_text())
    actual, expected = read(written(config)), MistralConfig.from_hf(config)
    np.testing.assert_allclose(
        inverse_frequencies(actual.rope, actual.head_dim),
        inverse_frequencies(expected.rope, actual.head_dim),
        rtol=1e-6,
    )
    if expected.rope.kind == "llama3":  # so few dimensions come from several contexts
        assert actual.rope.factor == expected.rope.factor
        actual = replace(actual, rope=expected.rope)
    assert comparable(actual) == comparable(expected)


def test_what_a_file_cannot_say_is_not_written() -> None:
    config = json.loads((GOLDENS / "yarn-untruncated" / "config.json").read_text())
    with pytest.raises(GGUFError, match="truncate"):
        gguf_metadata(config)


# ---- files of llama.cpp


def test_files_of_llama_cpp() -> None:
    from conversion.gguf.container.file import GGUFFile

    def opened(name: str) -> MistralConfig:
        with GGUFFile(GOLDENS.parent / "gguf" / f"{name}.gguf") as gguf:
            return MistralConfig.from_hf(hf_config(gguf))

    narrow = opened("narrow.Q8_0")
    assert (narrow.num_heads, narrow.num_kv_heads, narrow.head_dim, narrow.hidden_size) == (4, 2, 20, 64)
    assert narrow.rms_norm_eps == 1e-5
    assert not narrow.tie_word_embeddings
    assert opened("wide.Q4_K_M").tie_word_embeddings
    assert opened("wide.Q4_K_M").rope.theta == 1e6
    biases = opened("biases.Q8_0")
    assert (biases.attention_bias, biases.mlp_bias) == (True, False)
    assert opened("window.BF16").layer_windows == (9,)
    ministral = opened("ministral3.Q4_K_M")
    assert (ministral.attention_temperature_beta, ministral.attention_temperature_length) == (0.1, 16)
    assert (ministral.rope.kind, ministral.rope.factor, ministral.rope.beta_fast) == ("yarn", 32.0, 4.0)
    assert ministral.rope.attention_factor == 1.0
    llama3 = opened("llama3.Q8_0")
    assert (llama3.rope.kind, llama3.rope.factor, llama3.rope.original_max_position_embeddings) == ("llama3", 8.0, 64)
    assert len(llama3.rope.frequency_factors) == 16
    assert (llama3.bos_token_id, llama3.eos_token_ids) == (476, (477,))


def test_an_old_file_has_few_keys() -> None:
    """Without vocab_size, key_length, dimension_count, head_count_kv and freq_base, as in 2023."""
    config = read(plain({"llama.attention.head_count_kv": None}))
    assert (config.vocab_size, config.head_dim, config.num_kv_heads, config.rope.theta) == (97, 10, 6, 1e4)
    assert (config.bos_token_id, config.eos_token_ids) == (None, ())
    assert read(plain({"tokenizer.ggml.model": "llama"})).eos_token_ids == (2,)
    assert read(plain({"tokenizer.ggml.model": "gpt2"})).eos_token_ids == ()


def test_sizes_may_be_given_for_each_layer_if_they_are_equal() -> None:
    config = read(plain({"llama.attention.head_count_kv": np.array([3, 3, 3], np.int32)}))
    assert config.num_kv_heads == 3
    with pytest.raises(GGUFError, match="head_count_kv differs between layers"):
        read(plain({"llama.attention.head_count_kv": np.array([3, 2, 3], np.int32)}))


# ---- sliding windows

V01 = {
    "general.architecture": "llama",
    "general.name": "x",
    "llama.block_count": 32,
    "llama.context_length": 32768,
    "llama.embedding_length": 4096,
    "llama.feed_forward_length": 14336,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 10000.0,
}
NAMED = {**V01, "llama.embedding_length": 2048}


@pytest.mark.parametrize(
    ("metadata", "window"),
    [
        (V01, 4096),
        ({**V01, "llama.block_count": 48}, 4096),
        ({**V01, "llama.context_length": 8192}, 4096),
        ({**V01, "llama.context_length": 4096}, None),
        ({**V01, "llama.rope.freq_base": 1e6}, None),
        ({**V01, "llama.rope.freq_base": 5e5, "general.name": "Mistral"}, None),
        ({**V01, "llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 16.0}, None),
        ({**V01, "llama.rope.scale_linear": 2.0}, None),
        ({**V01, "llama.feed_forward_length": 11008}, None),
        ({**V01, "llama.attention.sliding_window": 0}, None),
        ({**V01, "llama.attention.sliding_window": 77}, 77),
        ({**NAMED}, None),
        ({**NAMED, "general.name": "mistralai_mistral-7b-instruct-v0.1"}, 4096),
        ({**NAMED, "general.basename": "TinyMistral"}, 4096),
        ({**NAMED, "general.base_model.0.repo_url": "https://huggingface.co/mistralai/Mistral-7B-v0.1"}, 4096),
        ({**NAMED, "general.name": "Mistral", "llama.rope.freq_base": 1e6}, None),
        ({**NAMED, "general.name": "Mistral", "llama.context_length": 4096}, None),
        ({**NAMED, "general.name": "Mixtral"}, None),
    ],
)
def test_windows_that_files_do_not_mention(metadata: dict[str, Any], window: int | None) -> None:
    gguf: Any = model(metadata, vocab_size=32000)
    config = read(gguf)
    assert config.layer_windows == (window,) * metadata["llama.block_count"]
    fields = fields_of(gguf)
    found = sliding_window(
        fields,
        shape_of(gguf, fields),
        theta=config.rope.theta,
        context=config.max_position_embeddings,
        plain_rope=config.rope.kind == "default",
    )
    assert found.size == window
    assert ("does not say" in found.reason) == (window == 4096 or "neither name" in found.reason)


@pytest.mark.parametrize(
    ("pattern", "windows"),
    [
        (2, (7, None, 7)),
        (1, (None, None, None)),
        (3, (7, 7, None)),
        (np.array([False, True, True]), (None, 7, 7)),
    ],
)
def test_patterns_of_windows(pattern: Any, windows: tuple[int | None, ...]) -> None:
    keys = {"llama.attention.sliding_window": 7, "llama.attention.sliding_window_pattern": pattern}
    assert read(plain(keys)).layer_windows == windows


# ---- rope


@pytest.mark.parametrize(
    ("keys", "factor"),
    [
        ({"llama.rope.scale_linear": 4.0}, 4.0),
        ({"llama.rope.scaling.factor": 4.0}, 4.0),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0, "llama.rope.scale_linear": 3.0}, 4.0),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 0.0}, None),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0}, None),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, None),
    ],
)
def test_linear_scaling_of_old_and_new_files(keys: dict[str, Any], factor: float | None) -> None:
    rope = read(plain(keys)).rope
    assert (rope.kind, rope.factor) == (("default", 1.0) if factor is None else ("linear", factor))


@pytest.mark.parametrize(
    ("keys", "attention"),
    [
        ({}, 1.0),
        ({"yarn_log_multiplier": 0.0}, 0.1 * math.log(16) + 1),
        ({"yarn_log_multiplier": None}, 0.1 * math.log(16) + 1),
        ({"yarn_log_multiplier": 0.5}, (0.1 * math.log(16) + 1) / (0.05 * math.log(16) + 1)),
        ({"attn_factor": 2.0}, 2.0),
        ({"attn_factor": 2.0, "yarn_log_multiplier": None}, 2 * (0.1 * math.log(16) + 1)),
        ({"yarn_attn_factor": 1.25}, 1.25),
    ],
)
def test_yarn_attention_factors(keys: dict[str, Any], attention: float) -> None:
    metadata = {**MINISTRAL, **{f"mistral3.rope.scaling.{key}": value for key, value in keys.items()}}
    metadata = {key: value for key, value in metadata.items() if value is not None}
    rope = read(model(metadata, vocab_size=97)).rope
    assert rope.attention_factor == pytest.approx(attention, rel=1e-6)


def test_temperature_with_plain_rope() -> None:
    kept = {key: value for key, value in MINISTRAL.items() if ".rope." not in key}
    config = read(model(kept, vocab_size=97))
    assert config.rope.kind == "default"
    assert (config.attention_temperature_beta, config.attention_temperature_length) == (0.1, 512)


def test_factors_of_no_known_rule_are_passed_on() -> None:
    factors = np.array([1, 1.5, 1.25, 9, 3], np.float32)
    gguf = plain(rope_factors=factors)
    config = read(gguf)
    assert (config.rope.kind, config.rope.frequency_factors) == ("factors", tuple(factors.tolist()))
    np.testing.assert_allclose(
        inverse_frequencies(config.rope, 10), 1e4 ** (-np.arange(5) / 5) / factors.astype(np.float64), rtol=1e-6
    )
    np.testing.assert_array_equal(rope_factors(hf_config(gguf)), factors)  # pyright: ignore


def test_factors_and_linear_scaling_multiply() -> None:
    factors = np.array([1, 1.5, 1.25, 9, 3], np.float32)
    config = read(plain({"llama.rope.scaling.factor": 2.0}, rope_factors=factors))
    assert config.rope.frequency_factors == tuple((factors * 2).tolist())


def test_factors_of_one_are_no_scaling() -> None:
    assert read(plain(rope_factors=np.ones(5, np.float32))).rope.kind == "default"


# ---- refusals


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"general.architecture": None}, "general.architecture"),
        ({"general.architecture": "qwen2"}, "'qwen2' is not implemented; implemented are llama, mistral3"),
        ({"general.architecture": "deepseek2"}, "Mistral Large 3"),
        ({"general.architecture": "mistral4"}, "Mistral Small 4"),
        ({"general.architecture": "clip"}, "vision tower"),
        ({"general.type": "adapter"}, r"an adapter \(LoRA\) for a model"),
        ({"general.type": "mmproj"}, "the vision or audio part of a model"),
        ({"general.type": "surprise"}, "general.type is 'surprise'"),
        ({"llama.expert_count": 8}, "Mixtral"),
        ({"llama.block_count": 2}, "block_count is 2"),
        ({"llama.block_count": 4}, "block_count is 4"),
        ({"llama.block_count": 2**40}, "block_count"),
        ({"llama.block_count": 0}, "block_count"),
        ({"llama.block_count": -1}, "block_count"),
        ({"llama.block_count": True}, "block_count"),
        ({"llama.embedding_length": 61}, "embedding_length is 61, and the embedding has rows of 60"),
        ({"llama.attention.head_count": 0}, "head_count"),
        ({"llama.attention.head_count": 7, "llama.attention.head_count_kv": 7}, "no multiple of 7 heads"),
        ({"llama.attention.head_count": "6"}, "head_count"),
        ({"llama.attention.head_count": np.array([], np.int32)}, "head_count"),
        ({"llama.attention.head_count_kv": 4}, "do not divide"),
        ({"llama.attention.head_count_kv": 12}, "head_count_kv"),
        ({"llama.attention.key_length": 12, "llama.rope.dimension_count": 10}, "dimension_count is 10"),
        ({"llama.attention.value_length": 12}, "value_length is 12"),
        ({"llama.rope.dimension_count": 4}, "dimension_count is 4"),
        ({"llama.attention.key_length": 9, "llama.attention.value_length": 9}, "even"),
        ({"llama.feed_forward_length": None}, "lacks llama.feed_forward_length"),
        ({"llama.feed_forward_length": 2**40}, "feed_forward_length"),
        ({"llama.context_length": 0}, "context_length"),
        ({"llama.context_length": None}, "context_length"),
        ({"llama.attention.layer_norm_rms_epsilon": math.nan}, "epsilon"),
        ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "epsilon"),
        ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon"),
        ({"llama.attention.layer_norm_rms_epsilon": 7.0}, "epsilon"),
        ({"llama.attention.causal": False}, "causal"),
        ({"llama.attention.scale": 0.5}, "attention.scale"),
        ({"llama.attention.sliding_window": -4}, "sliding_window"),
        ({"llama.attention.sliding_window": 7, "llama.attention.sliding_window_pattern": np.array([True])}, "pattern"),
        ({"llama.attention.sliding_window": 7, "llama.attention.sliding_window_pattern": 0}, "pattern"),
        ({"llama.final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ({"llama.logit_scale": math.nan}, "logit_scale"),
        ({"llama.rope.freq_base": math.inf}, "freq_base"),
        ({"llama.rope.freq_base": 0.0}, "freq_base"),
        ({"llama.rope.scaling.type": "longrope"}, "longrope"),
        ({"llama.rope.scaling.type": 3}, "scaling.type"),
        ({"llama.rope.scaling.factor": -2.0}, "scaling.factor"),
        ({"llama.rope.scaling.attn_factor": 1.5}, "attn_factor"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_ext_factor": 0.5}, "yarn_ext_factor"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_beta_fast": 0.0}, "yarn_beta_fast"),
        (
            {
                "llama.rope.scaling.type": "yarn",
                "llama.rope.scaling.factor": 8.0,
                "llama.rope.scaling.yarn_log_multiplier": -99.0,
            },
            "yarn_log_multiplier",
        ),
        ({"llama.attention.temperature_scale": 0.1, "llama.attention.temperature_length": 5}, "temperature_length"),
        ({"llama.attention.temperature_scale": 1001.0}, "a number above 1e-06 and at most 1000"),
        ({"tokenizer.ggml.eos_token_id": 97}, "eos_token_id is 97; expected an integer from 0 to 96"),
        ({"tokenizer.ggml.bos_token_id": -1}, "bos_token_id"),
    ],
)
def test_what_a_file_must_not_say_is_refused_by_name(changes: dict[str, Any], named: str) -> None:
    good = plain()
    metadata = {key: value for key, value in {**PLAIN, **changes}.items() if value is not None}
    with pytest.raises(GGUFError, match=named) as refused:
        hf_config(FakeGGUF(metadata, good.tensors))  # pyright: ignore
    assert "fake.gguf" in str(refused.value)


@pytest.mark.parametrize(
    ("factors", "named"),
    [
        (np.ones(4), "expected F32"),
        (np.array([1, 2, 0, 3, 4]), "no factors"),
        (np.array([1, 2, math.nan, 3, 4]), "no factors"),
        (np.array([1, 2, -1, 3, 4]), "no factors"),
        (np.array([1, 2, math.inf, 3, 4]), "no factors"),
    ],
)
def test_broken_rope_factors_are_refused(factors: np.ndarray, named: str) -> None:
    with pytest.raises(GGUFError, match=named):
        read(plain(rope_factors=factors))


def test_a_file_without_an_embedding_or_with_experts_is_refused() -> None:
    gguf = plain()
    del gguf.tensors["token_embd.weight"]
    with pytest.raises(GGUFError, match="token_embd"):
        read(gguf)
    with pytest.raises(GGUFError, match="Mixtral"):
        read(plain(extra={"blk.0.ffn_gate_exps.weight": (8, 44, 60)}))


ANYTHING = st.one_of(
    st.integers(-(2**63), 2**64 - 1),
    st.integers(-2, 70),
    st.floats(),
    st.booleans(),
    st.text(max_size=5),
    st.sampled_from(["llama", "mistral3", "yarn", "linear", "none", "model"]),
    st.lists(st.text(max_size=3), max_size=3),
    st.lists(st.integers(-1, 9), max_size=4).map(lambda items: np.array(items, np.int32)),
    st.lists(st.floats(width=32), max_size=4).map(lambda items: np.array(items, np.float32)),
)
KEYS = [
    *(key for key in {**PLAIN, **MINISTRAL} if key != "general.architecture"),
    *(f"llama.rope.scaling.{key}" for key in ("type", "factor", "attn_factor", "original_context_length")),
    *(
        f"mistral3.rope.scaling.{key}"
        for key in ("attn_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_ext_factor")
    ),
    *(f"llama.attention.{key}" for key in ("key_length", "value_length", "sliding_window", "sliding_window_pattern")),
    *(f"tokenizer.ggml.{key}" for key in ("model", "bos_token_id", "eos_token_id")),
]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([PLAIN, MINISTRAL]), st.dictionaries(st.sampled_from(KEYS), ANYTHING, min_size=1, max_size=3))
def test_any_metadata_gives_a_model_or_one_clear_error(base: dict[str, Any], changes: dict[str, Any]) -> None:
    good = model(base, vocab_size=97)
    gguf = FakeGGUF({**base, **changes}, good.tensors)
    try:
        config = read(gguf)
    except GGUFError:
        return
    assert np.all(np.isfinite(inverse_frequencies(config.rope, config.head_dim)))
    assert math.isfinite(config.rope.attention_factor)


def test_the_goldens_are_those_of_the_models() -> None:
    assert list(CONVERTED) == list(CONFIGS)
    assert (Path(GOLDENS.parent) / "gguf" / "metadata.json").is_file()
