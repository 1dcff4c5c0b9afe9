"""A look at files: what they hold, in totals that add up, without a heavy import."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conversion.inspection import find_models, inspect
from conversion.inspection.report import LongArray, render, size
from conversion.weights.tensor_source import WeightFileError
from tests.conversion.gguf_files import TOKENS, raw_tensors, write_good
from tests.conversion.tiny_models import CONFIG, GOLDENS, random_tensors, write_folder, write_mistral_folder


def test_a_gguf_file() -> None:
    found = inspect(GOLDENS / "narrow.Q4_0.gguf")
    tensors = {tensor.name: tensor for tensor in found.tensors}
    assert found.format == "GGUF version 3"
    assert found.files == {"narrow.Q4_0.gguf": (GOLDENS / "narrow.Q4_0.gguf").stat().st_size}
    assert tensors["blk.0.ffn_up.weight"].shape == (96, 64)
    assert tensors["blk.0.ffn_up.weight"].type == "Q4_0"
    assert tensors["blk.0.ffn_up.weight"].nbytes == 96 * 2 * 18
    assert found.metadata["llama.attention.head_count_kv"] == 2
    assert found.metadata["llama.attention.layer_norm_rms_epsilon"] == 1e-5
    assert found.metadata["tokenizer.ggml.tokens"] == LongArray(type="string[307]", first=())
    assert found.metadata["tokenizer.ggml.token_type"] == LongArray(type="i32[307]", first=(3, 3, 3, 3, 3, 6, 6, 6))
    assert found.problem is None


def test_totals_add_up() -> None:
    found = inspect(GOLDENS / "wide.Q4_K_M.gguf")
    assert found.parameters == sum(total.weights for total in found.types)
    assert found.nbytes == sum(total.nbytes for total in found.types) == sum(t.nbytes for t in found.tensors)
    assert len(found.tensors) == sum(total.tensors for total in found.types)
    assert [total.nbytes for total in found.types] == sorted((total.nbytes for total in found.types), reverse=True)
    assert found.bits_per_weight == 8 * found.nbytes / found.parameters


def test_all_parts_of_a_split_model_are_seen(tmp_path: Path) -> None:
    write_good(tmp_path / "x.gguf", split_max_tensors=2)
    found = inspect(tmp_path / "x-00002-of-00003.gguf")
    assert len(found.files) == 3
    assert {tensor.name: tensor.nbytes for tensor in found.tensors} == {
        name: raw.nbytes for name, raw in raw_tensors().items()
    }
    assert {tensor.file for tensor in found.tensors} == set(found.files)
    assert found.metadata["tokenizer.ggml.tokens"].type == f"string[{len(TOKENS)}]"
    # It is no model that could be served, and that is told beside all the rest.
    assert found.problem is not None
    assert found.problem in render(found)


def test_folders_of_both_formats_are_the_same_model(tmp_path: Path) -> None:
    ours, own = inspect(write_folder(tmp_path / "hf")), inspect(write_mistral_folder(tmp_path / "own"))
    assert ours.format == "Hugging Face folder"
    assert own.format == "folder in Mistral's own format"
    assert ours.parameters == own.parameters == sum(array.size for array in random_tensors(CONFIG).values())
    assert ours.memory == own.memory
    assert ours.bits_per_weight == 32
    assert ours.metadata["num_hidden_layers"] == own.metadata["n_layers"] == 3


def test_a_single_safetensors_file(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "hf")
    (folder / "config.json").unlink()
    for path in (folder, folder / "model.safetensors"):
        found = inspect(path)
        assert found.parameters == sum(array.size for array in random_tensors(CONFIG).values())
        assert found.memory.cache_per_token is None
        assert "cache" not in render(found)


def test_types_that_we_cannot_load_are_shown_and_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    header = json.dumps({"x": {"dtype": "F8_E4M3", "shape": [3, 5], "data_offsets": [0, 15]}}).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(15))
    found = inspect(path)
    assert (found.tensors[0].type, found.tensors[0].nbytes) == ("F8_E4M3", 15)
    assert found.problem == "tensors of type F8_E4M3 are not implemented"


def test_a_folder_of_gguf_files(tmp_path: Path) -> None:
    shutil.copy(GOLDENS / "narrow.Q4_0.gguf", tmp_path)
    assert inspect(tmp_path).path.endswith("narrow.Q4_0.gguf")
    write_good(tmp_path / "split.gguf", split_max_tensors=2)
    names = [path.name for path in find_models(tmp_path)]
    assert names == ["narrow.Q4_0.gguf", "split-00001-of-00003.gguf"]
    with pytest.raises(WeightFileError, match="2 GGUF models; choose one of them: narrow"):
        inspect(tmp_path)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match="no file or folder"):
        inspect(tmp_path / "missing")
    with pytest.raises(WeightFileError, match="no weights"):
        inspect(tmp_path)
    (tmp_path / "x.txt").write_text("hello")
    with pytest.raises(WeightFileError, match="neither a GGUF file, a safetensors file nor a model folder"):
        inspect(tmp_path / "x.txt")
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(WeightFileError, match="holds a JSON list"):
        inspect(tmp_path)


def test_the_text_has_everything_and_the_json_is_json() -> None:
    found = inspect(GOLDENS / "wide.Q6_K.gguf")
    text = str(found)
    for tensor in found.tensors:
        assert tensor.name in text
    for key in found.metadata:
        assert key in text
    assert "token_embd" not in render(found, tensors=False)
    assert f"{found.bits_per_weight:.3f}" in text
    data = json.loads(json.dumps(found.as_json()))
    assert data["bits_per_weight"] == found.bits_per_weight
    assert data["memory"]["weights"]["auto"] == found.memory.weights["auto"]
    assert data["metadata"]["tokenizer.ggml.tokens"] == {"type": "string[307]", "first": []}


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1,023 B"), (1536, "1.5 KiB"), (13 * 2**30, "13.0 GiB"), (2**50, "1,024.0 TiB")],
)
def test_sizes(count: int, text: str) -> None:
    assert size(count) == text


def test_nothing_heavy_is_imported() -> None:
    code = (
        "import sys; from conversion.inspection import inspect; str(inspect(sys.argv[1]));"
        "print(sorted({'jax', 'flax', 'gguf', 'transformers', 'tokenizers', 'sentencepiece'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, str(GOLDENS / "wide.Q6_K.gguf")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_long_lists_of_a_configuration_are_shortened(tmp_path: Path) -> None:
    factors = np.arange(20.0).tolist()
    folder = write_folder(tmp_path / "m", rope_scaling={"rope_type": "longrope", "long_factor": factors})
    found = inspect(folder)
    assert found.metadata["rope_scaling.rope_type"] == "longrope"
    assert found.metadata["rope_scaling.long_factor"] == LongArray(type="list[20]", first=tuple(factors[:8]))
