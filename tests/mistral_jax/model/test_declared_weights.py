"""What `conversion.weights.decoder_weights` declares is what the modules have, and what loading checks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from conversion.weights.decoder_weights import DECODER, parameters
from conversion.weights.tensor_source import WeightFileError
from mistral_jax.checkpoint.weights import check_tensors, hf_tensors, load_weights
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.low_rank import PROJECTIONS, part_features
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.load_weight import load_weight
from mistral_jax.quant.placement import Placement
from tests.conversion.arrays import Arrays
from tests.conversion.weights.test_decoder_weights import MIXTRAL, Sizes

GOLDENS = Path(__file__).parents[2] / "goldens" / "parity"
VARIANTS = sorted(path.name for path in GOLDENS.iterdir() if path.is_dir())
BIASED = MistralConfig(
    vocab_size=97,
    hidden_size=12,
    intermediate_size=14,
    num_layers=2,
    num_heads=6,
    num_kv_heads=2,
    head_dim=10,
    attention_bias=True,
    mlp_bias=True,
)


def declared_tensors(config: MistralConfig) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        name: rng.standard_normal(shape, np.float32)
        for parameter in parameters(config, num_layers=config.num_layers)
        for name, shape in parameter.tensors
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_architecture_has_the_declared_arrays(variant: str) -> None:
    config = MistralConfig.from_folder(GOLDENS / variant)
    model = nnx.eval_shape(lambda: Mistral(config, rngs=nnx.Rngs(0)))
    made = {
        ".".join(map(str, path)): tuple(value.get_value().shape) for path, value in nnx.to_flat_state(nnx.state(model))
    }
    declared = {found.name: found.shape for found in parameters(config, num_layers=config.num_layers)}
    assert declared == made
    assert config.num_parameters == sum(int(np.prod(shape)) for shape in made.values())


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_loaded_is_saved(tied: bool) -> None:
    config = replace(BIASED, tie_word_embeddings=tied)
    tensors = declared_tensors(config)
    saved = hf_tensors(load_weights(config, Arrays(tensors), dtype=jnp.float32))
    assert saved.keys() == tensors.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(saved[name], array)


@pytest.mark.parametrize("parameter", list(parameters(BIASED, num_layers=1)), ids=lambda found: found.name)
def test_a_part_with_another_shape_is_named(parameter: object) -> None:
    config = replace(BIASED, num_layers=1, layer_windows=())
    declared = list(parameters(config, num_layers=1))
    for name, shape in parameter.tensors:  # type: ignore[attr-defined]
        tensors = declared_tensors(config)
        tensors[name] = np.zeros((shape[0] + 1, *shape[1:]), np.float32)
        wrong = rf"(?s)\(1 tensors\).*{name} is \[{shape[0] + 1}.*expected \[{shape[0]}"
        with pytest.raises(WeightFileError, match=wrong):
            check_tensors(config, Arrays(tensors), declared)


def test_adapters_may_change_the_declared_projections() -> None:
    assert PROJECTIONS == {
        "qkv_proj": ("q_proj", "k_proj", "v_proj"),
        "o_proj": ("o_proj",),
        "gate_up_proj": ("gate_proj", "up_proj"),
        "down_proj": ("down_proj",),
    }
    assert part_features(BIASED) == {
        "q_proj": (60, 12),
        "k_proj": (20, 12),
        "v_proj": (20, 12),
        "o_proj": (12, 60),
        "gate_proj": (14, 12),
        "up_proj": (14, 12),
        "down_proj": (12, 14),
    }


def test_experts_are_checked_and_read_expert_by_expert() -> None:
    """No model of ours has experts yet; the declaration and the loader of one weight are ready for them."""
    config = Sizes()
    declared = list(parameters(config, num_layers=1, table=MIXTRAL))
    rng = np.random.default_rng(0)
    tensors = {name: rng.standard_normal(shape, np.float32) for found in declared for name, shape in found.tensors}
    check_tensors(config, Arrays(tensors), declared)  # type: ignore[arg-type]
    fused = next(found for found in declared if found.weight.projection == "gate_up_proj")
    names = [name for name, _ in fused.tensors]
    loaded = load_weight(
        Arrays(tensors), [(name, "dense") for name in names], dtype=np.dtype(np.float32), placement=Placement.default()
    )
    stacked = np.asarray(loaded[...]).reshape(fused.shape)  # type: ignore[index]
    for expert in range(config.num_experts):
        gate, up = (tensors[f"model.layers.0.block_sparse_moe.experts.{expert}.{w}.weight"] for w in ("w1", "w3"))
        np.testing.assert_array_equal(stacked[expert], np.concatenate([gate, up]))
    tensors[names[3]] = tensors[names[3]][:-1]
    with pytest.raises(WeightFileError, match=rf"{names[3]} is \[13, 12\], expected \[14, 12\]"):
        check_tensors(config, Arrays(tensors), declared)  # type: ignore[arg-type]


def test_every_row_has_a_module() -> None:
    model = nnx.eval_shape(lambda: Mistral(BIASED, rngs=nnx.Rngs(0)))
    for weight in DECODER:
        module = model.layers[0] if weight.in_layer else model
        for step in weight.name.split("."):
            module = getattr(module, step)
        assert module.weight.get_value().shape == weight.shape(BIASED)  # type: ignore[union-attr]
