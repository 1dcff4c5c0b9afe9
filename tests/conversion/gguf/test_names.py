"""Names of tensors in both directions, against the map of the `gguf` package."""

from __future__ import annotations

import gguf
import pytest

from conversion.gguf.container.file import GGUFError
from conversion.gguf.names import (
    expert_tensors,
    gguf_name,
    hf_names,
    is_left_out,
    is_scale,
    scale_name,
)
from conversion.weights.tensor_names import rotary_heads

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
LAYER = [
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    *(f"{'self_attn' if m[0] in 'qkvo' else 'mlp'}.{m}.{kind}" for m in MODULES for kind in ("weight", "bias")),
]
NAMES = [
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    *(f"model.layers.{i}.{name}" for i in (0, 7, 31) for name in LAYER),
]


@pytest.mark.parametrize("arch", [gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.MISTRAL3])
def test_names_are_those_of_the_format(arch: gguf.MODEL_ARCH) -> None:
    known = gguf.get_tensor_name_map(arch, 32)
    for name in NAMES:
        assert gguf_name(name) == known.get_name(name, try_suffixes=(".weight", ".bias"))
        assert hf_names(gguf_name(name)) == (name,)


def test_a_fused_projection_has_three_names() -> None:
    prefix = "model.layers.3.self_attn."
    assert hf_names("blk.3.attn_qkv.bias") == (f"{prefix}q_proj.bias", f"{prefix}k_proj.bias", f"{prefix}v_proj.bias")


@pytest.mark.parametrize(
    "name",
    [
        "rope_freqs.weight",
        "blk.3.attn_rot_embd.weight",
        "blk.3.attn_q.input_scale",
        "v.blk.0.attn_q.weight",
        "mm.1.weight",
        "a.conv1d.weight",
    ],
)
def test_tensors_that_are_not_needed_are_left_out(name: str) -> None:
    assert is_left_out(name)
    assert hf_names(name) == ()


@pytest.mark.parametrize(
    "name",
    [
        "blk.0.attn_q_norm.weight",
        "blk.0.attn_norm.bias",
        "blk.0.attn_norm_2.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0.attn_sinks.weight",
        "blk.x.attn_q.weight",
        "blk.99999999999.attn_q.weight",
        "output.bias",
        "token_types.weight",
        "rope_factors_long.weight",
        "blk.0.attn_q.scale",
        "visual.weight",
        "",
        ".",
    ],
)
def test_tensors_of_other_models_are_refused_by_name(name: str) -> None:
    with pytest.raises(GGUFError, match=f"tensor '{name}' belongs to no model"):
        hf_names(name)


@pytest.mark.parametrize(
    "name", ["model.layers.0.self_attn.q_norm.weight", "lm_head.bias", "model.layers.0.mlp.gate.weight", "x", ""]
)
def test_tensors_without_a_name_in_files_are_refused(name: str) -> None:
    with pytest.raises(GGUFError, match="has no name in GGUF files"):
        gguf_name(name)


def test_scales_belong_to_weights() -> None:
    assert scale_name("blk.2.ffn_up.weight") == "blk.2.ffn_up.scale"
    assert is_scale("blk.2.ffn_up.scale")
    assert is_scale("output.scale")
    assert is_scale("blk.2.attn_qkv.scale")
    assert not is_scale("token_embd.scale")
    assert not is_scale("blk.2.ffn_up.weight")
    assert not is_scale("blk.2.ffn_up.input_scale")
    assert not is_scale("blk.2.attn_norm.scale")


def test_tensors_of_experts_are_known() -> None:
    experts = [
        "blk.0.ffn_gate_inp.weight",
        "blk.0.ffn_gate_exps.weight",
        "blk.0.ffn_down.3.weight",
        "blk.1.ffn_up_shexp.weight",
        "blk.1.ffn_gate_up_exps.weight",
    ]
    assert expert_tensors([*experts, "blk.0.ffn_gate.weight", "blk.0.ffn_up.bias", "output.weight"]) == experts


def test_only_q_and_k_are_reordered() -> None:
    heads = {name: rotary_heads(name, num_heads=6, num_kv_heads=2) for name in NAMES}
    assert {n for name, n in heads.items() if ".q_proj." in name} == {6}
    assert {n for name, n in heads.items() if ".k_proj." in name} == {2}
    assert {n for name, n in heads.items() if ".q_proj." not in name and ".k_proj." not in name} == {None}
