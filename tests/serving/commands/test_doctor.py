"""`mistral-jax doctor`: says what is there and what is wrong, and never the token."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from conversion.gguf.container.file import GGUFFile
from mistral_jax.checkpoint.description import describe
from mistral_jax.hub.files import find_model
from mistral_jax.quant.placement import choose_placement
from serving.build.build_service import load_runner
from serving.commands.doctor import examine, model, report, run_doctor
from serving.settings.settings import Settings
from tests.conversion.gguf_files import rewritten
from tests.conversion.tiny_models import GOLDENS
from tests.integration.adapted_models import write_base, write_mixture

NARROW = GOLDENS / "narrow.Q8_0.gguf"

pytestmark = pytest.mark.filterwarnings("default")  # of libraries that are only looked at


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model without weights: a configuration and a tokenizer."""
    from mistral_jax.hub.files import DEMO_FOLDER

    if not (DEMO_FOLDER / "tokenizer.model").is_file():
        pytest.skip("the bundled tokenizer is not there")
    config = {
        "architectures": ["MistralForCausalLM"],
        "model_type": "mistral",
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    for file in DEMO_FOLDER.glob("tokenizer*"):
        shutil.copy(file, tmp_path)
    return tmp_path


def write_weights(folder: Path) -> Path:
    """Weights that fit the configuration, which stays as it is."""
    import jax.numpy as jnp
    from flax import nnx

    from conversion.weights.safetensors_io import write_safetensors
    from mistral_jax.checkpoint.weights import hf_tensors
    from mistral_jax.model.config import MistralConfig
    from mistral_jax.model.mistral import Mistral

    model = Mistral(MistralConfig.from_folder(folder), param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    write_safetensors(folder / "model.safetensors", hf_tensors(model))
    return folder / "model.safetensors"


def settings_for(folder: Path, **others: object) -> Settings:
    return Settings(model_kind="mistral", model_id=str(folder), device="cpu", **others)  # type: ignore[arg-type]


def test_sizes_of_a_model_that_fits(folder: Path) -> None:
    path = write_weights(folder)
    model = examine(settings_for(folder, max_seqs=4, max_seq_len=256))["model"]
    assert "problem" not in model
    attention, mlp = (2 * 4 + 2 * 2) * 16 * 64, 3 * 64 * 96
    assert model["parameters"] == 3 * (attention + mlp + 2 * 64) + 2 * 4096 * 64 + 64
    assert model["weight_bytes"] == 4 * model["parameters"]
    # Heads of 16 are stored in 32.
    assert model["cache_bytes_per_token"] == 2 * 3 * 2 * 32 * 4
    assert model["cache_bytes"] == (4 * 256 + 128) * model["cache_bytes_per_token"]  # the spare block, too
    assert model["files"] == {"model.safetensors": path.stat().st_size}
    assert (model["architecture"], model["dtype"], model["fits"]) == ("MistralForCausalLM", "float32", True)


@pytest.mark.parametrize(("max_seqs", "window"), [(1, None), (3, None), (2, 100)])
def test_the_cache_takes_what_is_said(folder: Path, max_seqs: int, window: int | None) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "sliding_window": window}))
    write_weights(folder)
    settings = settings_for(folder, max_seqs=max_seqs, max_seq_len=300, dtype="float32")
    description, placement = describe(find_model(str(folder))), choose_placement("cpu")
    runner = load_runner(settings, description, placement, length=300, report=lambda *_: None)
    assert model(settings)["cache_bytes"] == runner.cache_bytes() == runner.new_state().caches.nbytes


@pytest.mark.parametrize(("quant", "bits"), [("q8_0", 8.5), ("q4_0", 4.5), ("int8", 8.5)])
def test_quantised_weights_weigh_less(folder: Path, quant: str, bits: float) -> None:
    write_weights(folder)
    model = examine(settings_for(folder, max_seq_len=256, quant=quant))["model"]
    assert model["quant"] == quant
    # Norms and what a 4-bit model keeps in more bits weigh a little more.
    assert bits <= 8 * model["weight_bytes"] / model["parameters"] < bits + 3


def test_a_model_that_cannot_fit_says_what_to_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mistral_jax.quant.placement.Placement.free_memory", lambda _placement: 1_000_000)
    write_weights(folder)
    model = examine(settings_for(folder, max_seq_len=256))["model"]
    assert model["fits"] is False
    assert "--max-seqs" in model["problem"]


def test_missing_weights_and_missing_models_are_problems(folder: Path) -> None:
    assert "model.safetensors" in examine(settings_for(folder))["model"]["problem"]
    missing = examine(settings_for(folder / "nowhere"))["model"]["problem"]
    assert "nowhere" in missing
    assert "\n" not in missing


def test_the_other_parts_are_told_all_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_doctor(settings_for(folder), as_json=True, offline=False) == 1
    findings = json.loads(capsys.readouterr().out)
    assert set(findings) == {"versions", "machine", "devices", "caches", "settings", "model"}
    assert findings["versions"]["jax"]
    assert findings["machine"]["cores"] >= 1
    assert findings["devices"]["chosen"]
    text = report(findings)
    assert "PROBLEM" in text
    assert "GiB" in text


def test_tokens_are_never_told(folder: Path) -> None:
    settings = Settings.resolve(
        {"token_source": "literal:hf_secret", "model_id": str(folder), "api_keys": ("sk-secret",)}, env={}
    )
    findings = examine(settings)
    assert findings["caches"]["hub_token"] == "literal:***: present"
    assert "secret" not in json.dumps(findings)


def test_a_device_that_is_not_there_is_a_problem(folder: Path) -> None:
    settings = Settings(model_kind="mistral", model_id=str(folder), device="gpu:99")
    assert "gpu" in examine(settings)["devices"]["problem"]


def test_all_parts_of_a_split_gguf_file_are_listed(tmp_path: Path) -> None:
    count = {"split.count": 2, "split.tensors.count": 12}
    parts = [tmp_path / f"x-0000{number}-of-00002.gguf" for number in (1, 2)]
    with GGUFFile(NARROW) as file:
        names = list(file.tensors)
    rewritten(NARROW, parts[0], count | {"split.no": 0}, only=frozenset(names[:5]))
    rewritten(NARROW, parts[1], count | {"split.no": 1}, only=frozenset(names[5:]))
    for part in parts:
        model = examine(Settings(model_kind="mistral", model_id=str(part)))["model"]
        assert model["files"] == {path.name: path.stat().st_size for path in parts}


def test_adapters_are_listed_and_counted(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    mixture = write_mixture(tmp_path / "mixture", base)
    given = {"model_kind": "x-lora-mistral", "model_id": str(base), "xlora_model_id": str(mixture), "device": "cpu"}
    plain = model(Settings(model_kind="mistral", model_id=str(base), device="cpu", max_seq_len=256))
    found = model(Settings(**given, max_seq_len=256))
    assert found["adapters"] == {"one": "rank 3", "two": "rank 4", "three": "rank 5"}
    assert found["x-lora"]
    assert found["cache_bytes"] == 2 * plain["cache_bytes"]
    assert found["needed_bytes"] == found["weight_bytes"] + found["adapter_bytes"] + found["cache_bytes"]
    roomy = model(Settings(**given, max_seq_len=256, lora_folder=tmp_path, spare_loras=7))
    assert roomy["adapter_bytes"] > 3 * found["adapter_bytes"]
    shutil.rmtree(mixture / "two")
    assert "names adapter two, which has no folder" in model(Settings(**given))["problem"]
