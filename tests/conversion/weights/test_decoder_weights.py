"""The declaration of a decoder's weights: names of three formats, shapes and counts, and room for experts."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conversion.adapters.modules import PARTS
from conversion.weights.decoder_weights import (
    AXES,
    DECODER,
    EMBEDDING,
    HEAD,
    DecoderWeight,
    Format,
    Part,
    TensorName,
    axis_size,
    count_parameters,
    parameters,
    read_name,
    spellings,
    translate,
    weight_named,
)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the declaration reads of a configuration. Every axis has a length of its own."""

    vocab_size: int = 97
    hidden_size: int = 12
    intermediate_size: int = 14
    num_heads: int = 6
    num_kv_heads: int = 2
    head_dim: int = 10
    num_experts: int = 5
    attention_bias: bool = False
    mlp_bias: bool = False
    tie_word_embeddings: bool = False


MIXTRAL = (
    *(weight for weight in DECODER if not weight.name.startswith("mlp.")),
    DecoderWeight(
        name="block_sparse_moe.gate",
        parts=(Part(hf="block_sparse_moe.gate", mistral="feed_forward.gate", gguf="ffn_gate_inp", rows="X"),),
        columns="D",
    ),
    DecoderWeight(
        name="block_sparse_moe.gate_up_proj",
        parts=(
            Part(
                hf="block_sparse_moe.experts.{}.w1",
                mistral="feed_forward.experts.{}.w1",
                gguf="ffn_gate.{}",
                rows="F",
            ),
            Part(hf="block_sparse_moe.experts.{}.w3", mistral="feed_forward.experts.{}.w3", gguf="ffn_up.{}", rows="F"),
        ),
        columns="D",
        split="F",
        experts="X",
    ),
    DecoderWeight(
        name="block_sparse_moe.down_proj",
        parts=(
            Part(
                hf="block_sparse_moe.experts.{}.w2",
                mistral="feed_forward.experts.{}.w2",
                gguf="ffn_down.{}",
                rows="D",
            ),
        ),
        columns="F",
        split="D",
        experts="X",
    ),
)
"""A mixture of experts with the names of Mixtral's files."""

TABLES = {"dense": DECODER, "experts": MIXTRAL}


@st.composite
def tensors(draw: st.DrawFn, table: tuple[DecoderWeight, ...]) -> TensorName:
    weight = draw(st.sampled_from(table))
    return TensorName(
        weight,
        draw(st.sampled_from(weight.parts)),
        draw(st.integers(0, 999_999)) if weight.in_layer else None,
        "weight" if weight.bias is None else draw(st.sampled_from(["weight", "bias"])),
        None if weight.experts is None else draw(st.integers(0, 511)),
    )


# ---- names


@pytest.mark.parametrize("kind", TABLES)
@given(data=st.data())
def test_names_go_from_every_format_to_every_other_and_back(kind: str, data: st.DataObject) -> None:
    table = TABLES[kind]
    tensor = data.draw(tensors(table))
    for source in Format:
        assert read_name(tensor.spelled(source), source, table=table) == tensor
        for target in Format:
            there = translate(tensor.spelled(source), source, target, table=table)
            assert there == tensor.spelled(target)
            assert translate(there, target, source, table=table) == tensor.spelled(source)


def test_no_two_tensors_have_one_name() -> None:
    for table in TABLES.values():
        for form in Format:
            stems = [(weight.in_layer, getattr(part, form.value)) for weight in table for part in weight.parts]
            assert len(set(stems)) == len(stems)


@given(form=st.sampled_from(Format), name=st.text(st.sampled_from("model.layers.0blkattn_qwghtbis{}"), max_size=40))
def test_other_names_are_nobodys(form: Format, name: str) -> None:
    found = read_name(name, form)
    assert found is None or found.spelled(form) == name


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.00.mlp.up_proj.weight",
        "model.layers.1000000.mlp.up_proj.weight",
        "model.layers.²" + ".mlp.up_proj.weight",
        "model.layers.-1.mlp.up_proj.weight",
        "model.layers.{}.mlp.up_proj.weight",
        "model.layers.0.mlp.up_proj.scale",
        "model.layers.0.mlp.0.up_proj.weight",
        "model.layers.0.norm.weight",
        "model.layers.0.input_layernorm.bias",
        "model.norm.bias",
        "mlp.up_proj.weight",
        "lm_head.bias",
        "lm_head",
    ],
)
def test_nearly_right_names_are_nobodys(name: str) -> None:
    assert read_name(name, Format.HF) is None


def test_a_fused_tensor_is_named_in_the_format_that_has_it() -> None:
    fused = read_name("blk.7.attn_qkv.bias", Format.GGUF)
    assert fused is not None
    assert fused.spelled(Format.GGUF) == "blk.7.attn_qkv.bias"
    with pytest.raises(ValueError, match=r"hf files have no name for all parts of self_attn\.qkv_proj"):
        fused.spelled(Format.HF)
    assert translate("blk.7.attn_qkv.bias", Format.GGUF, Format.HF) is None
    assert [part.spelled(Format.HF) for part in fused.by_part()] == [
        f"model.layers.7.self_attn.{head}_proj.bias" for head in "qkv"
    ]


def test_what_the_matrices_of_a_model_are_called() -> None:
    assert spellings(EMBEDDING) == {"model.embed_tokens.weight", "tok_embeddings.weight", "token_embd.weight"}
    assert spellings(HEAD) == {"lm_head.weight", "output.weight"}
    with pytest.raises(KeyError):
        spellings("lm_head.bias")
    with pytest.raises(KeyError):
        weight_named("qkv_proj")


def test_columns_of_xlora_classifiers_are_numbered_as_the_reference_does() -> None:
    assert PARTS == ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


# ---- shapes and counts


def test_an_axis_is_a_letter_or_a_product() -> None:
    assert {letter: axis_size(letter, Sizes()) for letter in AXES} == {
        **{"V": 97, "D": 12, "F": 14, "N": 6, "K": 2, "H": 10, "X": 5},
    }
    assert axis_size("N*H", Sizes()) == 60


@pytest.mark.parametrize("kind", TABLES)
@given(data=st.data())
def test_parts_fill_their_weight(kind: str, data: st.DataObject) -> None:
    table = TABLES[kind]
    config = Sizes(
        **{name: data.draw(st.integers(1, 9)) for name in AXES.values()},
        attention_bias=data.draw(st.booleans()),
        mlp_bias=data.draw(st.booleans()),
        tie_word_embeddings=data.draw(st.booleans()),
    )
    found = list(parameters(config, num_layers=2, table=table))
    assert len({parameter.name for parameter in found}) == len(found)
    tensors = [tensor for parameter in found for tensor in parameter.tensors]
    assert len({tensor.name for tensor in tensors}) == len(tensors)
    for parameter in found:
        leading = 1 if parameter.weight.experts is None else 2
        rows = parameter.shape[0] if leading == 1 else parameter.shape[0] * parameter.shape[1]
        assert sum(shape[0] for _, shape in parameter.tensors) == rows
        assert {shape[1:] for _, shape in parameter.tensors} == {parameter.shape[leading:]}
    counted = count_parameters(config, num_layers=2, table=table)
    assert counted == sum(_elements(parameter.shape) for parameter in found)
    assert counted == sum(_elements(shape) for _, shape in tensors)


def _elements(shape: tuple[int, ...]) -> int:
    return shape[0] * _elements(shape[1:]) if shape else 1


def test_experts_have_tensors_of_their_own_one_expert_after_the_other() -> None:
    found = {parameter.name: parameter for parameter in parameters(Sizes(), num_layers=1, table=MIXTRAL)}
    fused = found["layers.0.block_sparse_moe.gate_up_proj.weight"]
    assert fused.shape == (5, 28, 12)
    assert [name for name, _ in fused.tensors[:3]] == [
        f"model.layers.0.block_sparse_moe.experts.{name}.weight" for name in ("0.w1", "0.w3", "1.w1")
    ]
    assert {shape for _, shape in fused.tensors} == {(14, 12)}
    assert found["layers.0.block_sparse_moe.gate.weight"].shape == (5, 12)


def test_mixtral_has_its_published_number_of_parameters() -> None:
    """46.7 billion: https://arxiv.org/abs/2401.04088 counts 47."""
    mixtral = Sizes(
        **{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_heads": 32},
        **{"num_kv_heads": 8, "head_dim": 128, "num_experts": 8},
    )
    assert count_parameters(mixtral, num_layers=32, table=MIXTRAL) == 46_702_792_704


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_what_is_divided_has_the_axis_in_all_its_rows(table: tuple[DecoderWeight, ...]) -> None:
    """Then every part can be cut into as many equal pieces as divide the axis."""
    for weight in table:
        if weight.split is not None:
            for factor in (1, 2, 3):
                wider = replace(Sizes(), **{name: getattr(Sizes(), name) * factor for name in ("num_heads",)})
                config = replace(wider, **{AXES[weight.split]: getattr(Sizes(), AXES[weight.split]) * factor})
                pieces = getattr(config, AXES[weight.split])
                assert all(rows % pieces == 0 for rows in weight.part_rows(config)), weight.name


def test_letters_of_axes_are_those_of_the_legend() -> None:
    for weight in MIXTRAL:
        used = "*".join(filter(None, (weight.columns, weight.split, weight.experts, *(p.rows for p in weight.parts))))
        assert set(re.split(r"\*", used)) <= set(AXES)
