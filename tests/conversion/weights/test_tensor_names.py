"""Names of every checkpoint flavour come out as Hugging Face's text names, and rotary rows in the halves layout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion.weights.tensor_names import HuggingFaceText, MistralFormat, halves_to_pairs, pairs_to_halves
from tests.conversion.arrays import Arrays


def named(*names: str) -> Arrays:
    return Arrays({name: np.full(1, i, np.float32) for i, name in enumerate(names)})


@pytest.mark.parametrize(
    ("stored", "text"),
    [
        ("model.layers.0.mlp.up_proj.weight", "model.layers.0.mlp.up_proj.weight"),
        ("lm_head.weight", "lm_head.weight"),
        ("language_model.model.norm.weight", "model.norm.weight"),
        ("language_model.lm_head.weight", "lm_head.weight"),
        ("model.language_model.layers.11.self_attn.q_proj.weight", "model.layers.11.self_attn.q_proj.weight"),
        ("model.language_model.embed_tokens.weight", "model.embed_tokens.weight"),
    ],
)
def test_prefixes_of_wrapped_models_are_stripped(stored: str, text: str) -> None:
    source = HuggingFaceText(named("other.weight", stored))
    assert text in set(source.names())
    out = np.empty(1, np.float32)
    source.read_into(text, out)
    assert out == 1
    assert source.shape(text) == (1,)
    assert source.dtype(text) == np.float32


@pytest.mark.parametrize(
    "name",
    [
        "vision_tower.patch_conv.weight",
        "model.vision_tower.ln_pre.weight",
        "multi_modal_projector.linear_1.weight",
        "model.multi_modal_projector.norm.weight",
        "model.layers.0.self_attn.rotary_emb.inv_freq",
    ],
)
def test_vision_and_derived_tensors_are_left_out(name: str) -> None:
    assert list(HuggingFaceText(named(name, "model.norm.weight")).names()) == ["model.norm.weight"]


def test_unknown_names_are_kept_so_that_loading_can_name_them() -> None:
    assert "model.layers.0.mystery.weight" in set(HuggingFaceText(named("model.layers.0.mystery.weight")).names())
    assert "layers.0.mystery" in set(MistralFormat(named("layers.0.mystery"), num_heads=2, num_kv_heads=1).names())


def test_mistral_format_names() -> None:
    layer = {
        "attention.wq": "self_attn.q_proj",
        "attention.wk": "self_attn.k_proj",
        "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj",
        "feed_forward.w1": "mlp.gate_proj",
        "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj",
        "attention_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    expected = {f"layers.12.{theirs}.weight": f"model.layers.12.{hf}.weight" for theirs, hf in layer.items()} | {
        "tok_embeddings.weight": "model.embed_tokens.weight",
        "norm.weight": "model.norm.weight",
        "output.weight": "lm_head.weight",
    }
    vision = (
        "vision_encoder.ln_pre.weight",
        "vision_language_adapter.w_in.weight",
        "patch_merger.merging_layer.weight",
    )
    source = MistralFormat(named(*expected, *vision), num_heads=2, num_kv_heads=1)
    assert set(source.names()) == set(expected.values())


def test_mistral_format_reorders_queries_and_keys_only() -> None:
    rows = {"wq": 12, "wk": 6, "wv": 6, "wo": 5}
    tensors = {
        f"layers.0.attention.{name}.weight": np.arange(n * 3, dtype=np.float32).reshape(n, 3)
        for name, n in rows.items()
    }
    source = MistralFormat(Arrays(tensors), num_heads=2, num_kv_heads=1)
    # One head of six rows: pairs (0 1) (2 3) (4 5) become halves 0 2 4 and 1 3 5.
    head = [0, 2, 4, 1, 3, 5]
    orders = {
        "q_proj": head + [6 + i for i in head],
        "k_proj": head,
        "v_proj": list(range(6)),
        "o_proj": list(range(5)),
    }
    for (name, order), stored in zip(orders.items(), tensors.values(), strict=True):
        out = np.empty_like(stored)
        source.read_into(f"model.layers.0.self_attn.{name}.weight", out)
        np.testing.assert_array_equal(out, stored[order])


@given(heads=st.integers(1, 5), half=st.integers(1, 6), columns=st.integers(1, 3))
def test_the_two_orders_are_inverse(heads: int, half: int, columns: int) -> None:
    weight = np.arange(heads * half * 2 * columns).reshape(heads * half * 2, columns)
    np.testing.assert_array_equal(halves_to_pairs(pairs_to_halves(weight, heads), heads), weight)
    np.testing.assert_array_equal(pairs_to_halves(halves_to_pairs(weight, heads), heads), weight)
    np.testing.assert_array_equal(pairs_to_halves(weight[:, 0], heads), pairs_to_halves(weight, heads)[:, 0])
