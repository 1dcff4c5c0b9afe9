"""A look at folders of adapters."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from conversion.adapters.description import is_adapter_folder
from conversion.inspection import inspect
from conversion.inspection.report import render
from conversion.weights.tensor_source import WeightFileError
from tests.conversion.adapters.folders import (
    BASE,
    HIDDEN,
    TWO_PARTS,
    classifier_linears,
    classifier_tensors,
    keys,
    peft_config,
    peft_tensors,
    random_factors,
    write_adapter,
    write_folder,
    write_hub,
)


def test_a_lora(tmp_path: Path) -> None:
    factors = random_factors(keys(TWO_PARTS), ranks=dict.fromkeys(keys(["q_proj"]), 5))
    config = peft_config(target_modules=TWO_PARTS, rank_pattern={"q_proj": 5})
    found = inspect(write_folder(tmp_path / "a", config, peft_tensors(factors)))
    assert found.format == "LoRA adapter"
    assert found.metadata == {
        **{"base model": BASE, "rank": "2 to 5", "scale": "1.6 to 4", "dropout in training": "0.05"},
        "targets": "q_proj, gate_proj; 6 modules in 3 layers",
        "adapter_model.safetensors: format": "pt",
    }
    assert found.parameters == sum(a.size + b.size for a, b in factors.values())
    assert found.problem is None
    assert "Memory" not in render(found)


def test_a_mixture(tmp_path: Path) -> None:
    tensors = classifier_tensors(classifier_linears([HIDDEN, 7, 18]), ["inner.0", "last"])
    found = inspect(write_hub(tmp_path / "x", tensors=tensors, xlora_depth=2, xlora_size=7, top_k_lora=2))
    assert found.format == "X-LoRA model"
    assert found.metadata["classifier"] == "depth 2: 20 -> 7 -> 18, ReLU between; 291 parameters"
    assert found.metadata["scalings"] == ("3 adapters, for each of 6 modules; softmax, temperature 1, the 2 largest")
    assert found.metadata["adapter adapter_10"] == (
        "rank 2, scale 4; 552 parameters; q_proj, gate_proj; 6 modules in 3 layers"
    )
    assert set(found.files) == {
        "xlora_classifier.safetensors",
        *(f"adapter_{number}/adapter_model.safetensors" for number in (1, 2, 10)),
    }
    assert found.parameters == 291 + 3 * 552
    assert {tensor.file for tensor in found.tensors} == set(found.files)


def test_what_is_wrong_is_shown_beside_what_is_there(tmp_path: Path) -> None:
    found = inspect(write_adapter(tmp_path / "a", keys(["q_proj"], [0, 2])))
    assert found.problem is not None
    assert "no weights for model.layers.1.self_attn.q_proj" in found.problem
    assert len(found.tensors) == 4
    folder = write_hub(tmp_path / "x", top_k_lora=4)
    assert inspect(folder).problem == f"{folder / 'xlora_config.json'}: top_k_lora is 4, and there are 3 adapters"
    (tmp_path / "a" / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightFileError, match=r"has no adapter_model\.safetensors"):
        inspect(tmp_path / "a")


def test_a_model_with_a_leftover_configuration_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_adapter_folder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert not is_adapter_folder(tmp_path)


def test_nothing_heavy_is_imported(tmp_path: Path) -> None:
    code = "import sys; from conversion.inspection import inspect; inspect(sys.argv[1]); print('jax' in sys.modules)"
    folder = write_hub(tmp_path / "x")
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
