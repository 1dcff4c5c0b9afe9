"""Logits equal the reference implementation's. The goldens and their maker: `tests/goldens/make_parity_goldens.py`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conversion.weights.weight_files import find_weight_files
from mistral_jax.model.config import MistralConfig
from tests.parity_table import BOUNDS, GOLDENS, VARIANTS, error, load, logits, texts

pytestmark = pytest.mark.slow


@pytest.mark.slow(by="variant")
@pytest.mark.parametrize("way", ["whole", "loop"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_logits_equal_the_reference(variant: str, way: str) -> None:
    assert error(GOLDENS / variant, "float32", way) <= BOUNDS["float32"]


# One of each kind of attention, rope and file type. The other form of attention computes what the loop does:
# test_attention.
@pytest.mark.slow
@pytest.mark.parametrize("variant", ["mistral-v0.1-window", "ministral3", "llama-2"])
@pytest.mark.parametrize(
    ("dtype", "way"), [("float32", "parallel"), ("float32", "kernel"), ("bfloat16", "whole"), ("bfloat16", "loop")]
)
def test_other_ways_and_types_stay_close_to_the_reference(variant: str, dtype: str, way: str) -> None:
    assert error(GOLDENS / variant, dtype, way) <= BOUNDS[dtype]


def test_goldens_cover_what_they_should() -> None:
    """A golden cannot drop out unseen: each feature that changes the logits appears in one."""
    configs = [MistralConfig.from_folder(GOLDENS / variant) for variant in VARIANTS]
    assert len(configs) == 24
    assert {config.rope.kind for config in configs} == {"default", "linear", "llama3", "yarn"}
    assert {config.tie_word_embeddings for config in configs} == {True, False}
    assert any(config.attention_temperature_beta for config in configs)
    assert any(set(config.layer_windows) == {9, None} for config in configs)
    assert any(config.attention_bias and config.mlp_bias for config in configs)
    assert any(config.num_heads * config.head_dim != config.hidden_size for config in configs)
    assert any(config.num_kv_heads == config.num_heads for config in configs)
    assert {config.architecture for config in configs} == {
        "MistralForCausalLM",
        "LlamaForCausalLM",
        "MinistralForCausalLM",
        "Ministral3ForCausalLM",
        "Mistral3ForConditionalGeneration",
    }
    assert len(find_weight_files(GOLDENS / "mistral-sharded")) > 1
    versions = [json.loads(path.read_text()) for path in GOLDENS.glob("*/config.json")]
    assert any("rope_scaling" in raw for raw in versions)
    assert any("rope_parameters" in raw for raw in versions)


@pytest.mark.parametrize("variant", ["mistral3-module-names", "mistral3-ministral3"])
def test_files_decide_whether_embeddings_are_tied(variant: str) -> None:
    """One wrapper says nothing and has an output matrix; the other alone says tied, and has none."""
    model = load(GOLDENS / variant, "float32")
    assert model.config.tie_word_embeddings == (variant == "mistral3-ministral3")
    assert (model.lm_head is None) == model.config.tie_word_embeddings


def test_a_window_one_token_longer_would_show() -> None:
    """The bound is tight enough to see the smallest mistake that matters."""
    folder = GOLDENS / "mistral-v0.1-window"
    (tokens, expected), *_ = texts(folder)
    model = load(folder, "float32")
    object.__setattr__(model.config, "layer_windows", (12, 12))
    (ours,) = logits(model, [tokens], "whole")
    assert np.abs(ours - expected)[:11].max() < 1e-4 * np.abs(expected).max()
    assert np.abs(ours - expected).max() > 1e-2 * np.abs(expected).max()
