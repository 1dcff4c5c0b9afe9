"""Which weight takes which form while loading, what that weighs, and that the model stays the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mistral_jax
from conversion.weights.tensor_source import WeightFileError
from mistral_jax.checkpoint.summary import summarize
from mistral_jax.checkpoint.weights import load_weights, open_weights, plan_weights, save_pretrained
from mistral_jax.model.config import MistralConfig
from mistral_jax.model.mistral import Mistral
from mistral_jax.quant.array import Int8Array, Packed, QuantizedArray, RowStack, dense, padded
from mistral_jax.quant.interleaved import InterleavedArray
from mistral_jax.quant.native import native
from mistral_jax.quant.placement import Placement
from mistral_jax.quant.plan import ACTIVATIONS, QUANTIZATIONS, Activations, Quantization

pytestmark = pytest.mark.slow

GGUF = Path(__file__).parents[2] / "goldens" / "gguf"
CONFIG = MistralConfig(
    vocab_size=97,
    hidden_size=256,
    intermediate_size=320,  # whole blocks of 32, but not of 256
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=48,  # 192 columns of o_proj: no whole block of 256 either
)
TOKENS = jnp.asarray([np.random.default_rng(0).integers(0, 97, 30)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    save_pretrained(Mistral(CONFIG, rngs=nnx.Rngs(0)), folder)
    return folder


def load(
    folder: Path, quant: Quantization, config: MistralConfig = CONFIG, activations: Activations = "float"
) -> Mistral:
    source = open_weights(config, [folder / "model.safetensors"])
    return load_weights(config, source, dtype=jnp.float32, quant=quant, activations=activations)


def test_a_second_gguf_model_among_the_weight_files_is_not_ignored() -> None:
    both = [GGUF / "narrow.Q4_0.gguf", GGUF / "narrow.Q8_0.gguf"]
    with pytest.raises(WeightFileError, match=r"narrow\.Q4_0\.gguf is a whole model; leave out .*narrow\.Q8_0\.gguf"):
        open_weights(CONFIG, both)


def logits(model: Mistral) -> np.ndarray:
    return np.asarray(jax.jit(lambda model: model.logits(model.hidden_states(TOKENS)))(model))


def kind_of(linear: nnx.Module) -> str:
    weight = linear.weight.get_value()  # type: ignore[attr-defined]
    packed = isinstance(weight, QuantizedArray | InterleavedArray)
    return weight.kind.name if packed else type(weight).__name__


# RMS of the differences of the logits, relative to their spread: about the relative error of one weight (0.5 %, 9 %, 7
# %) times the root of the number of products that a token goes through, on this random model.
@pytest.mark.parametrize(("quant", "bound"), [("q8_0", 0.04), ("int8", 0.05), ("q4_0", 0.5), ("q4_k", 0.4)])
def test_a_model_quantised_while_loading_is_nearly_the_same(folder: Path, quant: Quantization, bound: float) -> None:
    plain, packed = load(folder, "none"), load(folder, quant)
    wanted, found = logits(plain), logits(packed)
    assert 0 < np.sqrt(np.mean((found - wanted) ** 2)) / wanted.std() < bound
    if quant != "int8":  # which rounds the activations, too
        unpacked = nnx.state(packed)
        for _, variable in nnx.to_flat_state(unpacked):
            if isinstance(packed_weight := variable.get_value(), Packed):
                variable.set_value(padded(dense(packed_weight, jnp.float32)))
        nnx.update(plain, unpacked)
        np.testing.assert_allclose(found, logits(plain), atol=2e-5 * np.abs(wanted).max())


def test_weights_are_quantised_from_what_is_stored_whatever_is_computed_in(folder: Path) -> None:
    source = open_weights(CONFIG, [folder / "model.safetensors"])
    raws = [
        load_weights(CONFIG, source, dtype=dtype, quant="q4_k").layers[0].mlp.gate_up_proj.weight.get_value().tiles
        for dtype in (jnp.float32, jnp.bfloat16)
    ]
    np.testing.assert_array_equal(*raws)


def test_forms_follow_llama_cpp_where_rows_are_no_whole_blocks(folder: Path) -> None:
    model = load(folder, "q4_k")
    layer = model.layers[0]
    assert model.lm_head is not None
    assert kind_of(model.embed_tokens) == kind_of(layer.self_attn.qkv_proj) == kind_of(layer.mlp.gate_up_proj) == "Q4_K"
    assert kind_of(layer.self_attn.o_proj) == kind_of(layer.mlp.down_proj) == "Q5_0"
    assert kind_of(model.lm_head) == "Q6_K"
    assert layer.input_layernorm.weight[...].dtype == jnp.float32
    assert isinstance(load(folder, "int8").layers[1].mlp.down_proj.weight.get_value(), Int8Array)
    assert isinstance(load(folder, "auto").layers[1].mlp.down_proj.weight.get_value(), jax.Array)


def test_activations_are_rounded_where_products_are_of_integers(folder: Path, tmp_path: Path) -> None:
    exact, found = logits(load(folder, "q8_0")), load(folder, "q8_0", activations="int8")
    assert isinstance(found.embed_tokens.weight.get_value(), QuantizedArray)  # nothing is multiplied by it
    assert found.lm_head is not None
    for linear in (found.lm_head, found.layers[1].self_attn.qkv_proj, found.layers[0].mlp.down_proj):
        assert isinstance(linear.weight.get_value(), InterleavedArray)
    error = np.sqrt(np.mean((logits(found) - exact) ** 2)) / exact.std()
    assert 1e-4 < error < 0.05
    np.testing.assert_array_equal(logits(load(folder, "q8_0", activations="auto")), logits(found))
    tied = replace(CONFIG, tie_word_embeddings=True)
    save_pretrained(Mistral(tied, rngs=nnx.Rngs(0)), tmp_path)
    exact, found = logits(load(tmp_path, "q8_0", tied)), load(tmp_path, "q8_0", tied, "int8")
    assert isinstance(found.embed_tokens.weight.get_value(), InterleavedArray)
    assert 1e-4 < np.sqrt(np.mean((logits(found) - exact) ** 2)) / exact.std() < 0.05


def test_activations_that_a_device_cannot_round_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_weights(CONFIG, [folder / "model.safetensors"])
    several = Placement((jax.devices()[0],) * 2)
    chosen: Any = {"dtype": jnp.float32, "quant": "q8_0", "activations": "int8"}
    with pytest.raises(ValueError, match=r"not implemented for several devices; set activations \(--activations\)"):
        plan_weights(CONFIG, source, **chosen, placement=several)
    monkeypatch.setattr(native, "unavailable_because", lambda: "there is no C++ compiler (c++) on the PATH")
    with pytest.raises(ValueError, match="kernels that do not work here: there is no C\\+\\+ compiler"):
        load_weights(CONFIG, source, **chosen)
    plain = load_weights(CONFIG, source, **chosen | {"quant": "none"})  # nothing is packed
    assert isinstance(plain.layers[0].mlp.down_proj.weight.get_value(), jax.Array)
    fallback = load_weights(CONFIG, source, **chosen | {"activations": "auto"})
    assert isinstance(fallback.layers[0].mlp.down_proj.weight.get_value(), QuantizedArray)


def test_rows_that_hold_no_block_stay_plain(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=97, hidden_size=20, intermediate_size=24, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=10
    )
    save_pretrained(Mistral(config, rngs=nnx.Rngs(0)), tmp_path)
    np.testing.assert_array_equal(logits(load(tmp_path, "q4_k", config)), logits(load(tmp_path, "none", config)))


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("quant", QUANTIZATIONS)
def test_what_is_planned_is_what_is_loaded(folder: Path, quant: Quantization, activations: Activations) -> None:
    source = open_weights(CONFIG, [folder / "model.safetensors"])
    chosen: Any = {"dtype": jnp.float32, "quant": quant, "activations": activations}
    planned = plan_weights(CONFIG, source, **chosen, placement=Placement.default())
    seen: list[tuple[int, int]] = []
    model = load_weights(CONFIG, source, **chosen, progress=lambda done, total: seen.append((done, total)))
    summary = summarize(model)
    assert summary.nbytes == sum(weight.nbytes for weight in planned) == seen[-1][0] == seen[-1][1]
    assert summary.weights == CONFIG.num_parameters
    assert sum(summary.bytes_by_form.values()) == summary.nbytes


def test_an_output_matrix_that_is_the_embedding_has_the_precision_of_an_output(tmp_path: Path) -> None:
    config = replace(CONFIG, tie_word_embeddings=True)
    save_pretrained(Mistral(config, rngs=nnx.Rngs(0)), tmp_path)
    model = load(tmp_path, "q4_k", config)
    assert kind_of(model.embed_tokens) == "Q6_K"
    assert logits(model).shape == (1, 30, 97)


@pytest.mark.parametrize(
    "name", ["wide.Q4_K_M.gguf", "wide.Q2_K.gguf", "narrow.Q8_0.gguf", "narrow.IQ4_XS.gguf", "biases.Q8_0.gguf"]
)
def test_packed_and_unpacked_weights_of_a_file_compute_the_same(name: str) -> None:
    packed = mistral_jax.load(GGUF / name, dtype="float32", activations="float", progress=False)
    plain = mistral_jax.load(GGUF / name, dtype="float32", quant="none", progress=False)
    ours, theirs = (np.asarray(model.logits(list(range(3, 40)))) for model in (packed, plain))
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(theirs).max())
    assert set(summarize(plain.module).bytes_by_form) == {"float32"}
    # The norms of these tiny models, which are plain, weigh more than in real ones.
    assert packed.runner.weight_bytes <= 1.1 * (GGUF / name).stat().st_size


def test_parts_of_a_fused_matrix_may_differ_in_form() -> None:
    model = mistral_jax.load(GGUF / "wide.Q4_K_M.gguf", progress=False).module
    stacks = [layer.self_attn.qkv_proj.weight.get_value() for layer in model.layers]
    mixed = [stack for stack in stacks if isinstance(stack, RowStack)]
    assert mixed
    assert len({part.kind.name for part in mixed[0].parts if isinstance(part, InterleavedArray)}) > 1


@pytest.mark.parametrize("quant", ["auto", "int8", "q8_0"])
def test_a_packed_model_answers_alike_alone_and_in_a_batch(quant: Quantization) -> None:
    model = mistral_jax.load(GGUF / "wide.Q4_K_M.gguf", quant=quant, slots=4, length=64, progress=False)
    prompts = ["one", "two and three", "four", "five six seven"]
    together = model.generate(prompts, temperature=0.8, seed=5, max_tokens=12)
    alone = [model.generate(prompt, temperature=0.8, seed=5, max_tokens=12) for prompt in prompts]
    assert [g.tokens for g in together] == [g.tokens for g in alone]


def test_a_packed_model_can_be_saved_as_a_plain_one(tmp_path: Path) -> None:
    packed = mistral_jax.load(GGUF / "narrow.Q8_0.gguf", dtype="float32", activations="float", progress=False)
    mistral_jax.save_pretrained(packed.module, tmp_path)
    config = MistralConfig.from_folder(tmp_path)
    again = load_weights(config, open_weights(config, [tmp_path / "model.safetensors"]), dtype=jnp.float32)
    tokens = list(range(3, 30))
    found = again.logits(again.hidden_states(jnp.asarray([tokens])))[0]
    np.testing.assert_allclose(found, packed.logits(tokens), atol=1e-4)
