"""What we write of a configuration is what llama.cpp's converter writes of it, and the window that it leaves out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conversion.gguf.container.file import GGUFError
from conversion.gguf.writing.from_config import gguf_architecture, gguf_metadata, rope_factors
from tests.conversion.model_configs import CONFIGS

GGUF = Path(__file__).parents[3] / "goldens" / "gguf"
CONVERTED: dict[str, Any] = json.loads((GGUF / "metadata.json").read_text())
TYPES = {int: "UINT32", float: "FLOAT32", str: "STRING"}
LLAMA = CONFIGS["Llama-2-7b-hf"]
MISTRAL = CONFIGS["Mistral-7B-v0.1"]
YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 2048}


def with_rope(**rope: Any) -> dict[str, Any]:
    return {**LLAMA, "rope_scaling": {**YARN, **rope}}


@pytest.mark.parametrize("name", CONFIGS)
def test_published_models_get_the_keys_and_types_that_llama_cpp_gives_them(name: str) -> None:
    expected = CONVERTED[name]
    assert gguf_architecture(CONFIGS[name]) == expected["architecture"]
    ours = {key: [value, TYPES[type(value)]] for key, value in gguf_metadata(CONFIGS[name]).items()}
    del ours[f"{expected['architecture']}.attention.sliding_window"]
    assert ours == expected["metadata"]


@pytest.mark.parametrize("name", CONFIGS)
def test_llama_3_gets_the_factors_that_llama_cpp_gives_it(name: str) -> None:
    ours, theirs = rope_factors(CONFIGS[name]), CONVERTED[name]["rope_factors"]
    if theirs is None:
        assert ours is None
    else:
        assert ours is not None
        assert ours.dtype == np.float32
        np.testing.assert_allclose(ours, theirs, rtol=5e-7)


@pytest.mark.parametrize(
    ("name", "window"),
    [
        ("Mistral-7B-v0.1", 4096),
        ("Mistral-7B-Instruct-v0.2", 0),
        ("Ministral-8B-Instruct-2410", 32768),
        ("Llama-2-7b-hf", 0),
        ("Mistral-Small-3.1-24B-Instruct-2503", 0),
    ],
)
def test_the_window_is_always_said(name: str, window: int) -> None:
    metadata = gguf_metadata(CONFIGS[name])
    assert metadata[f"{gguf_architecture(CONFIGS[name])}.attention.sliding_window"] == window


def test_windows_are_those_of_the_reference() -> None:
    def window(**changes: Any) -> Any:
        metadata = gguf_metadata({**MISTRAL, **changes})
        return metadata["llama.attention.sliding_window"], metadata.get("llama.attention.sliding_window_pattern")

    missing = {key: value for key, value in MISTRAL.items() if key != "sliding_window"}
    assert gguf_metadata(missing)["llama.attention.sliding_window"] == 4096
    assert window(sliding_window=None) == (0, None)
    assert window(use_sliding_window=False) == (4096, None)  # which no class reads
    assert window(model_type="llama", architectures=["LlamaForCausalLM"]) == (0, None)
    assert window(layer_types=["full_attention"] * 32) == (4096, None)
    ministral = {"architectures": ["MinistralForCausalLM"], "model_type": "ministral", "num_hidden_layers": 3}
    full, sliding = "full_attention", "sliding_attention"
    assert window(**ministral, layer_types=[full, sliding, full]) == (4096, [False, True, False])
    assert window(**ministral, layer_types=[sliding] * 3) == (4096, None)
    assert window(**ministral, layer_types=[full] * 3) == (0, None)


def test_defaults_of_the_class_are_written_out() -> None:
    bare = {
        key: value for key, value in MISTRAL.items() if key not in ("num_key_value_heads", "rms_norm_eps", "rope_theta")
    }
    metadata = gguf_metadata(bare)
    assert metadata["llama.attention.head_count_kv"] == 8
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-6
    assert metadata["llama.rope.freq_base"] == 10000.0
    assert gguf_metadata({**MISTRAL, "num_key_value_heads": None})["llama.attention.head_count_kv"] == 32


def test_rope_of_transformers_5() -> None:
    versions = [
        {**LLAMA, "rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {**LLAMA, "rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 4.0}},
    ]
    assert gguf_metadata(versions[0]) == gguf_metadata(versions[1])
    assert gguf_metadata(versions[0])["llama.rope.freq_base"] == 5e5


@pytest.mark.parametrize(
    ("rope", "architecture", "attention"),
    [
        ({}, "llama", 0.1 * math.log(16) + 1),
        ({"mscale": 1.0, "mscale_all_dim": 0.0}, "llama", 0.1 * math.log(16) + 1),
        ({"beta_fast": 4.0}, "mistral3", 0.1 * math.log(16) + 1),
        ({"attention_factor": 1.5}, "mistral3", 1.5),
        ({"attention_factor": 1.0}, "mistral3", 1.0),
        ({"mscale": 1.0, "mscale_all_dim": 1.0}, "mistral3", 1.0),
        ({"mscale": 0.7, "mscale_all_dim": 1.4}, "mistral3", (0.07 * math.log(16) + 1) / (0.14 * math.log(16) + 1)),
    ],
)
def test_yarn_is_written_such_that_llama_cpp_computes_the_same(
    rope: dict[str, Any], architecture: str, attention: float
) -> None:
    """Architecture `llama` reads neither betas nor multiplier; its attention factor is always 0.1 log(factor) + 1."""
    config = with_rope(**rope)
    metadata: dict[str, Any] = gguf_metadata(config)
    assert gguf_architecture(config) == architecture
    multiplier = metadata.get("mistral3.rope.scaling.yarn_log_multiplier", 0.0)
    grown = 0.1 * math.log(16)
    assert (grown + 1) / (grown * multiplier + 1) == pytest.approx(attention)
    assert metadata.get(f"{architecture}.rope.scaling.yarn_attn_factor") == rope.get("attention_factor")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({**LLAMA, "architectures": ["Qwen2ForCausalLM"]}, "Qwen2ForCausalLM"),
        ({**LLAMA, "architectures": []}, "null"),
        ({**LLAMA, "hidden_size": None}, "hidden_size"),
        ({**LLAMA, "vocab_size": 2**40}, "vocab_size"),
        ({**LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ({**LLAMA, "rope_scaling": {"rope_type": "longrope", "long_factor": [2.0], "short_factor": [1.0]}}, "longrope"),
        ({**LLAMA, "rope_scaling": {"type": "linear"}}, "factor"),
        (with_rope(truncate=False), "truncate"),
        (with_rope(factor=1.0, attention_factor=2.0), "attention factor"),
        (with_rope(factor=math.nan), "factor"),
        (
            {
                **MISTRAL,
                "architectures": ["Ministral3ForCausalLM"],
                "model_type": "ministral3",
                "rope_parameters": {"type": "linear", "factor": 2.0, "llama_4_scaling_beta": 0.1},
            },
            "temperature",
        ),
        ({**LLAMA, "num_hidden_layers": 2**31 - 1}, "num_hidden_layers"),
        ({**LLAMA, "rope_theta": "1e4"}, "rope_theta"),
        ({**LLAMA, "rms_norm_eps": None}, "rms_norm_eps"),
        ({**LLAMA, "architectures": [["LlamaForCausalLM"]]}, "architecture"),
    ],
)
def test_what_a_file_cannot_say_is_refused_by_name(config: dict[str, Any], named: str) -> None:
    with pytest.raises(GGUFError, match=named):
        gguf_metadata(config)
