"""Weights from files: which model they make, what is said of files that do not fit, and what loading takes."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from conversion.weights.tensor_source import WeightFileError
from mistral_jax.checkpoint.weights import (
    choose_dtype,
    hf_tensors,
    load_weights,
    open_weights,
    save_pretrained,
    stored_dtype,
)
from mistral_jax.model.config import MistralConfig, RopeConfig
from mistral_jax.model.mistral import Mistral

pytestmark = pytest.mark.slow

CONFIG = MistralConfig(
    vocab_size=97, hidden_size=12, intermediate_size=14, num_layers=2, num_heads=6, num_kv_heads=2, head_dim=10
)
REPOSITORY = Path(__file__).parents[3]


def tensors_of(config: MistralConfig, dtype: Any = np.float32, seed: int = 0) -> dict[str, np.ndarray]:
    """A checkpoint under Hugging Face names, written out by hand."""
    D, F, H = config.hidden_size, config.intermediate_size, config.head_dim
    shapes = {"model.embed_tokens.weight": (97, D), "model.norm.weight": (D,)}
    if not config.tie_word_embeddings:
        shapes["lm_head.weight"] = (97, D)
    for i in range(config.num_layers):
        layer = f"model.layers.{i}."
        shapes |= {
            layer + "self_attn.q_proj.weight": (config.num_heads * H, D),
            layer + "self_attn.k_proj.weight": (config.num_kv_heads * H, D),
            layer + "self_attn.v_proj.weight": (config.num_kv_heads * H, D),
            layer + "self_attn.o_proj.weight": (D, config.num_heads * H),
            layer + "mlp.gate_proj.weight": (F, D),
            layer + "mlp.up_proj.weight": (F, D),
            layer + "mlp.down_proj.weight": (D, F),
            layer + "input_layernorm.weight": (D,),
            layer + "post_attention_layernorm.weight": (D,),
        }
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def load(
    tensors: dict[str, np.ndarray], folder: Path, config: MistralConfig = CONFIG, dtype: Any = jnp.float32
) -> Mistral:
    save_file(tensors, folder / "model.safetensors")
    return load_weights(config, open_weights(config, [folder / "model.safetensors"]), dtype=dtype)


# ---- loading


def test_fused_matrices_hold_their_parts_in_order(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    model = load(tensors, tmp_path)
    layer = model.layers[1]
    prefix = "model.layers.1."
    qkv = [tensors[f"{prefix}self_attn.{part}_proj.weight"] for part in "qkv"]
    np.testing.assert_array_equal(layer.self_attn.qkv_proj.weight[...], np.concatenate(qkv))
    gate_up = [tensors[f"{prefix}mlp.{part}_proj.weight"] for part in ("gate", "up")]
    np.testing.assert_array_equal(layer.mlp.gate_up_proj.weight[...], np.concatenate(gate_up))
    np.testing.assert_array_equal(model.embed_tokens.weight[...], tensors["model.embed_tokens.weight"])
    assert model.lm_head is not None
    np.testing.assert_array_equal(model.lm_head.weight[...], tensors["lm_head.weight"])


@pytest.mark.parametrize("stored", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("wanted", [jnp.float32, jnp.bfloat16])
def test_types_are_converted_on_the_way(tmp_path: Path, stored: Any, wanted: Any) -> None:
    tensors = tensors_of(CONFIG, stored)
    model = load(tensors, tmp_path, dtype=wanted)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(model))} == {jnp.dtype(wanted)}
    name = "model.layers.0.mlp.down_proj.weight"
    np.testing.assert_array_equal(model.layers[0].mlp.down_proj.weight[...], tensors[name].astype(wanted))


def test_progress_counts_bytes_up_to_the_whole(tmp_path: Path) -> None:
    save_file(tensors_of(CONFIG), tmp_path / "model.safetensors")
    seen: list[tuple[int, int]] = []
    source = open_weights(CONFIG, [tmp_path / "model.safetensors"])
    model = load_weights(CONFIG, source, dtype=jnp.bfloat16, progress=lambda done, total: seen.append((done, total)))
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    assert held > 2 * CONFIG.num_parameters, "no matrix of this model needs zeros round it: the test would not see them"
    assert seen[-1] == (held, held)
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})


def test_any_set_of_files_may_be_given(tmp_path: Path) -> None:
    """What --weight-file does: names and number of files mean nothing."""
    tensors = tensors_of(CONFIG)
    names = list(tensors)
    for i in range(3):
        save_file({name: tensors[name] for name in names[i::3]}, tmp_path / f"part{i}.bin")
    model = load_weights(CONFIG, open_weights(CONFIG, sorted(tmp_path.iterdir())), dtype=jnp.float32)
    for name, array in hf_tensors(model).items():
        np.testing.assert_array_equal(array, tensors[name])


def test_a_file_given_twice_is_refused(tmp_path: Path) -> None:
    save_file(tensors_of(CONFIG), tmp_path / "model.safetensors")
    with pytest.raises(WeightFileError, match="is in both"):
        open_weights(CONFIG, [tmp_path / "model.safetensors"] * 2)


# ---- what does not fit


def test_missing_surplus_and_misshapen_tensors_are_named_in_one_error(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    del tensors["model.layers.1.self_attn.k_proj.weight"]
    tensors["model.layers.2.mlp.up_proj.weight"] = np.zeros((14, 12), np.float32)
    tensors["model.norm.weight"] = np.zeros((13,), np.float32)
    tensors["model.layers.0.mlp.gate_proj.weight"] = np.zeros((12, 14), np.float32)
    with pytest.raises(WeightFileError) as caught:
        load(tensors, tmp_path)
    message = str(caught.value)
    assert "4 tensors" in message
    assert "missing: model.layers.1.self_attn.k_proj.weight" in message
    assert "surplus: model.layers.2.mlp.up_proj.weight" in message
    assert "model.norm.weight is [13], expected [12]" in message
    assert "model.layers.0.mlp.gate_proj.weight is [12, 14], expected [14, 12]" in message


def test_parts_of_a_fused_matrix_cannot_make_up_for_each_other(tmp_path: Path) -> None:
    """q one head short and k one head long would fill the fused matrix, and mean nothing."""
    tensors = tensors_of(CONFIG)
    prefix = "model.layers.0.self_attn."
    tensors[prefix + "q_proj.weight"] = np.zeros((50, 12), np.float32)
    tensors[prefix + "k_proj.weight"] = np.zeros((30, 12), np.float32)
    with pytest.raises(WeightFileError, match=r"q_proj\.weight is \[50, 12\], expected \[60, 12\]"):
        load(tensors, tmp_path)


def test_a_long_list_of_problems_is_cut_with_its_count(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match=r"(?s)21 tensors.*… and 1 more") as caught:
        load({}, tmp_path)
    assert len(str(caught.value).splitlines()) == 22


def test_biases_that_the_configuration_does_not_have_are_surplus(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG) | {"model.layers.0.self_attn.q_proj.bias": np.zeros(60, np.float32)}
    with pytest.raises(WeightFileError, match=r"surplus: model\.layers\.0\.self_attn\.q_proj\.bias"):
        load(tensors, tmp_path)


# ---- tied embeddings


def test_tied_embeddings_are_one_matrix(tmp_path: Path) -> None:
    tied = replace(CONFIG, tie_word_embeddings=True)
    model = load(tensors_of(tied), tmp_path, tied)
    assert model.lm_head is None
    assert model.config.tie_word_embeddings


def test_a_copy_of_the_embedding_is_no_output_matrix(tmp_path: Path) -> None:
    tied = replace(CONFIG, tie_word_embeddings=True)
    tensors = tensors_of(tied)
    model = load(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, tmp_path, tied)
    assert model.lm_head is None


def test_an_output_matrix_of_its_own_is_used_whatever_the_configuration_claims(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG)
    model = load(tensors, tmp_path, replace(CONFIG, tie_word_embeddings=True))
    assert not model.config.tie_word_embeddings
    assert model.lm_head is not None
    np.testing.assert_array_equal(model.lm_head.weight[...], tensors["lm_head.weight"])


# ---- types


@pytest.mark.parametrize(
    ("wanted", "stored", "platform", "expected"),
    [
        ("float32", "bfloat16", "cpu", "float32"),
        ("float16", None, "cpu", "float16"),
        ("auto", "bfloat16", "gpu", "bfloat16"),
        ("auto", "float32", "gpu", "float32"),
        ("auto", "float16", "gpu", "float16"),
        ("auto", "float16", "cpu", "bfloat16"),
        ("auto", "float64", "cpu", "bfloat16"),
        ("auto", "uint8", "gpu", "bfloat16"),
        ("auto", None, "cpu", "bfloat16"),
    ],
)
def test_choice_of_type(wanted: str, stored: str | None, platform: str, expected: str) -> None:
    assert choose_dtype(wanted, stored, platform) == jnp.dtype(expected)


def test_an_unknown_type_is_refused_with_the_choices() -> None:
    with pytest.raises(ValueError, match=r"'int3'.*auto, float32, bfloat16 or float16"):
        choose_dtype("int3", None, "cpu")


def test_the_largest_tensor_says_what_a_checkpoint_is_stored_in(tmp_path: Path) -> None:
    tensors = tensors_of(CONFIG, ml_dtypes.bfloat16)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    assert stored_dtype(open_weights(CONFIG, [tmp_path / "model.safetensors"])) == "bfloat16"


# ---- saving

SAVED = {
    "plain": CONFIG,
    "tied": replace(CONFIG, tie_word_embeddings=True),
    "window": replace(CONFIG, layer_windows=(7, 7)),
    "linear": replace(CONFIG, rope=RopeConfig(theta=5e5, kind="linear", factor=2.5)),
    "several ends": replace(CONFIG, eos_token_ids=(2, 5)),
    "biases": replace(CONFIG, attention_bias=True, mlp_bias=True, architecture="LlamaForCausalLM"),
}


@pytest.mark.parametrize("case", SAVED)
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_saved_model_comes_back(tmp_path: Path, case: str, dtype: str | None) -> None:
    config = SAVED[case]
    model = Mistral(config, rngs=nnx.Rngs(1))
    save_pretrained(model, tmp_path, dtype=dtype and jnp.dtype(dtype))
    read = MistralConfig.from_folder(tmp_path)
    assert replace(read, dtype=None) == config
    assert read.dtype == (dtype or "float32")
    again = load_weights(read, open_weights(read, [tmp_path / "model.safetensors"]), dtype=jnp.float32)
    kept = jnp.dtype(dtype or "float32")
    for before, after in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(again)), strict=True):
        np.testing.assert_array_equal(after, before.astype(kept).astype(jnp.float32))


def test_saved_names_and_configuration_are_the_ordinary_ones(tmp_path: Path) -> None:
    save_pretrained(Mistral(CONFIG, rngs=nnx.Rngs(1)), tmp_path)
    assert {name: array.shape for name, array in load_file(tmp_path / "model.safetensors").items()} == {
        name: array.shape for name, array in tensors_of(CONFIG).items()
    }
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mistral"


@pytest.mark.parametrize(
    "changes",
    [
        {"rope": RopeConfig(kind="yarn", factor=2.0, original_max_position_embeddings=8)},
        {"layer_windows": (7, None)},
        {"attention_temperature_beta": 0.1, "attention_temperature_length": 8},
    ],
)
def test_what_the_writer_cannot_express_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(WeightFileError, match="implemented for plain and linear rope"):
        save_pretrained(Mistral(replace(CONFIG, **changes), rngs=nnx.Rngs(1)), tmp_path)


# ---- memory

MEASURE_LOADING = """
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from mistral_jax.checkpoint.weights import load_weights, open_weights
from mistral_jax.model.config import MistralConfig

def peak():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

def load(folder):
    config = MistralConfig.from_folder(folder)
    return load_weights(config, open_weights(config, [folder / "model.safetensors"]), dtype=jnp.bfloat16)

warm, big = map(Path, sys.argv[1:])
load(warm)  # everything is imported and every code path taken once
before = peak()
model = load(big)
print(peak() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model))))
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak memory where Linux shows it")
@pytest.mark.parametrize("stored", ["bfloat16", "float32"])
def test_loading_takes_the_weights_and_less_than_two_tensors(tmp_path: Path, stored: str) -> None:
    """Peak resident memory (VmHWM) of a process of its own over its peak before loading, on a CPU, where the device's
    memory is the host's: it counts the weights themselves once, and whatever else was alive at the same time.
    """
    shape = {"vocab_size": 16000, "hidden_size": 768, "intermediate_size": 2048, "num_layers": 10}
    big = MistralConfig(**shape, num_heads=12, num_kv_heads=4, head_dim=64)  # pyright: ignore[reportArgumentType]
    for name, config in (("warm", CONFIG), ("big", big)):
        model = nnx.eval_shape(lambda config=config: Mistral(config, rngs=nnx.Rngs(0)))
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, jnp.dtype(stored)), nnx.state(model))
        graphdef = nnx.graphdef(model)
        save_pretrained(nnx.merge(graphdef, zeros), tmp_path / name)
    script = [sys.executable, "-c", MEASURE_LOADING, str(tmp_path / "warm"), str(tmp_path / "big")]
    done = subprocess.run(script, cwd=REPOSITORY, capture_output=True, text=True, check=True)
    grown, weights = map(int, done.stdout.split())
    largest = 2 * 16000 * 768
    assert weights == 2 * big.num_parameters
    assert weights > 150e6
    assert weights * 0.9 < grown < weights + 2 * largest, f"{grown / 1e6:.0f} MB for {weights / 1e6:.0f} MB of weights"
