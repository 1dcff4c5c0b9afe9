"""What an inspection says of memory is what loading would take, though it knows neither JAX nor the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import jax.numpy as jnp
import pytest

from conversion.dequantize import UNPACKABLE
from conversion.inspection import inspect
from conversion.inspection.memory_estimate import cache_bytes_per_token
from conversion.quantize import fallback
from conversion.weights.ggml_types import BY_NAME
from conversion.weights.weight_forms import KEPT_PACKED
from mistral_jax.checkpoint.weights import open_weights, plan_weights, settle_tying
from mistral_jax.hub.files import find_model
from mistral_jax.model.config import MistralConfig
from mistral_jax.notebook.verify import read_config
from mistral_jax.quant.plan import Quantization
from tests.conversion.tiny_models import CONFIG, DEMO, GOLDENS, write_folder


def test_the_tables_are_those_of_the_quantisers() -> None:
    assert {name for name in UNPACKABLE if BY_NAME[name].dtype is None} == KEPT_PACKED
    smaller = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
    assert {name: fallback(BY_NAME[name], 32).name for name in smaller} == smaller
    for name in KEPT_PACKED - smaller.keys():
        if BY_NAME[name].block_size == 32:
            assert fallback(BY_NAME[name], 31).dtype is not None


@pytest.mark.parametrize(
    "file",
    ["wide.Q4_K_M", "narrow.IQ4_XS", "biases.Q8_0", "llama3.Q4_0", "ministral3.Q4_K_M", "window.BF16", "demo", "tiny"],
)
def test_estimates_are_what_loading_plans(tmp_path: Path, file: str) -> None:
    path = GOLDENS / f"{file}.gguf"
    if file == "demo":
        path = DEMO
    elif file == "tiny":
        path = write_folder(tmp_path / "tiny", tie_word_embeddings=True)
    files = find_model(str(path))
    config = read_config(files)
    source = open_weights(config, files.fetch_weights())
    estimate = inspect(path).memory
    for quant, size in estimate.weights.items():
        planned = plan_weights(
            settle_tying(config, source), source, dtype=jnp.bfloat16, quant=cast("Quantization", quant)
        )
        # The zeros around plain matrices whose shape is ragged are known to those who make them only.
        zeros = sum(weight.nbytes for weight in planned) - size
        ragged = [weight for weight in planned if any(form == "dense" for _, form in weight.parts)]
        assert 0 <= zeros <= len(ragged) * 15 * 2 * config.hidden_size, quant
        if file == "demo":
            assert zeros == 0, quant
    assert estimate.cache_per_token == config.kv_bytes_per_token(2)


@pytest.mark.parametrize(
    "changes",
    [{}, {"head_dim": None, "num_attention_heads": 8}, {"num_key_value_heads": None}, {"text_config": CONFIG}],
)
def test_cache_of_a_configuration(changes: dict[str, Any]) -> None:
    config = {**CONFIG, **changes}
    if "text_config" in changes:
        config |= {"architectures": ["Mistral3ForConditionalGeneration"]}
    if config.get("num_key_value_heads") is None:
        config |= {"num_attention_heads": 8}
    assert cache_bytes_per_token(config) == MistralConfig.from_hf(config).kv_bytes_per_token(2)


def test_an_unknown_shape_gives_no_number() -> None:
    assert cache_bytes_per_token({}) is None
    assert cache_bytes_per_token({"num_hidden_layers": 2, "num_attention_heads": "x", "hidden_size": None}) is None
