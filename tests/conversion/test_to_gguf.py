"""Folders to GGUF files: what is in them, in which types, what cannot be converted, and what an interruption leaves."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from conversion.files.output_files import OutputError
from conversion.gguf.config import hf_config
from conversion.gguf.container.file import GGUFFile
from conversion.gguf.source import GGUFSource
from conversion.gguf.writing.type_mix import MIXES
from conversion.to_gguf import convert_to_gguf
from conversion.tokenizer.files import TokenizerError
from conversion.weights.safetensors_io import SafetensorsFile, read_array
from conversion.weights.tensor_source import WeightFileError
from tests.conversion.gguf_files import rewritten
from tests.conversion.tiny_models import CONFIG, GOLDENS, random_tensors, write_folder, write_mistral_folder

# Relative RMS error of normally distributed values: what gguf.quants has, or our own quantiser for the K types that it
# cannot write, and 5 % more.
ERRORS = {
    **{"F32": 0.0, "BF16": 0.00175, "F16": 0.00022, "Q8_0": 0.0057, "Q4_0": 0.0905, "Q4_1": 0.0825, "Q5_0": 0.045},
    **{"Q5_1": 0.040, "Q4_K": 0.0735, "Q5_K": 0.0362, "Q6_K": 0.0174},
}


def values(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a GGUF file under Hugging Face's names, as float32."""
    with GGUFFile(path) as file:
        source = GGUFSource(file)
        found = {name: np.empty(source.shape(name), np.float32) for name in source.names()}
        for name, out in found.items():
            source.read_into(name, out)
    return found


def raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Type, shape and bytes of all tensors of a GGUF file, by the reference reader."""
    return {
        tensor.name: (tensor.tensor_type.name, tuple(map(int, tensor.shape)), tensor.data.tobytes())
        for tensor in gguf.GGUFReader(path).tensors
    }


def metadata(path: Path) -> dict[str, tuple[Any, list[str]]]:
    """Values and types of all metadata, by the reference reader."""
    fields = gguf.GGUFReader(path).fields
    return {
        key: (field.contents(), [kind.name for kind in field.types])
        for key, field in fields.items()
        if not key.startswith("GGUF.")
    }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("name", MIXES)
def test_every_type_holds_the_model_to_its_accuracy(model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.gguf"
    convert_to_gguf(model, path, type=name.upper())
    file = SafetensorsFile(model / "model.safetensors")
    found = values(path)
    assert found.keys() == set(file.names())
    with GGUFFile(path) as written:
        source = GGUFSource(written)
        kinds = {hf_name: source.kind(hf_name).name for hf_name in found}
    for hf_name, array in found.items():
        expected = read_array(file, hf_name)
        error = np.sqrt(np.mean((array - expected) ** 2) / np.mean(expected**2))
        assert error <= ERRORS[kinds[hf_name]], (hf_name, kinds[hf_name], error)
    mix = MIXES[name]
    assert kinds["lm_head.weight"] == mix.output.name
    assert kinds["model.layers.0.mlp.gate_proj.weight"] == mix.matrices.name
    assert kinds["model.norm.weight"] == "F32"
    read = metadata(path)
    assert read["general.file_type"] == (mix.file_type, ["UINT32"])
    assert read["general.quantization_version"] == (2, ["UINT32"])


def test_metadata_describe_the_model(model: Path, tmp_path: Path) -> None:
    convert_to_gguf(model, tmp_path / "x.gguf", type="q8_0")
    read = metadata(tmp_path / "x.gguf")
    assert read["general.architecture"] == ("llama", ["STRING"])
    assert read["general.name"] == ("tiny", ["STRING"])
    assert read["general.sampling.temp"][0] == pytest.approx(0.7)
    assert read["general.sampling.top_k"] == (40, ["UINT32"])
    assert read["llama.attention.head_count_kv"] == (2, ["UINT32"])
    assert read["llama.rope.freq_base"] == (10000.0, ["FLOAT32"])
    assert len(read["tokenizer.ggml.tokens"][0]) == CONFIG["vocab_size"]
    convert_to_gguf(model, tmp_path / "y.gguf", name="Another Name")
    assert metadata(tmp_path / "y.gguf")["general.name"][0] == "Another Name"


def test_mistrals_own_format_gives_the_same_file(model: Path, tmp_path: Path) -> None:
    convert_to_gguf(model, tmp_path / "a.gguf", type="f32")
    convert_to_gguf(write_mistral_folder(tmp_path / "tiny"), tmp_path / "b.gguf", type="f32")
    assert raw(tmp_path / "a.gguf") == raw(tmp_path / "b.gguf")
    a, b = metadata(tmp_path / "a.gguf"), metadata(tmp_path / "b.gguf")
    assert b == {key: value for key, value in a.items() if not key.startswith("general.sampling.")}


def test_the_text_model_of_a_wrapper_is_converted(model: Path, tmp_path: Path) -> None:
    text = {**CONFIG, "head_dim": 20}
    tensors = {f"language_model.{name}": array for name, array in random_tensors(CONFIG).items()}
    tensors["vision_tower.patch_conv.weight"] = np.zeros((2, 3), np.float32)
    wrapper = write_folder(tmp_path / "wrapper", tensors=tensors)
    (wrapper / "config.json").write_text(
        json.dumps({"architectures": ["Mistral3ForConditionalGeneration"], "text_config": text})
    )
    convert_to_gguf(wrapper, tmp_path / "a.gguf", type="f32")
    convert_to_gguf(model, tmp_path / "b.gguf", type="f32")
    assert raw(tmp_path / "a.gguf") == raw(tmp_path / "b.gguf")
    assert metadata(tmp_path / "a.gguf")["general.architecture"][0] == "mistral3"


@pytest.mark.parametrize("same", [True, False])
def test_an_output_matrix_is_left_out_only_if_it_is_the_embedding(tmp_path: Path, same: bool) -> None:
    tensors = random_tensors(CONFIG)
    if same:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    folder = write_folder(tmp_path / "m", tensors=tensors, tie_word_embeddings=True)
    convert_to_gguf(folder, tmp_path / "x.gguf", type="q4_0")
    types = {name: kind for name, (kind, _, _) in raw(tmp_path / "x.gguf").items()}
    assert ("output.weight" in types) is not same
    assert types["token_embd.weight"] == ("Q6_K" if same else "Q4_0")


def test_a_file_of_the_same_type_keeps_every_byte_and_every_key(tmp_path: Path) -> None:
    source = GOLDENS / "llama3.Q8_0.gguf"
    convert_to_gguf(source, tmp_path / "x.gguf", type="q8_0")
    assert raw(tmp_path / "x.gguf") == raw(source)
    assert metadata(tmp_path / "x.gguf") == metadata(source)


def test_a_file_of_another_type_is_packed_anew_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        convert_to_gguf(GOLDENS / "wide.Q6_K.gguf", tmp_path / "x.gguf", type="q4_k_m")
    assert "quantised already" in caplog.text
    original, again = values(GOLDENS / "wide.Q6_K.gguf"), values(tmp_path / "x.gguf")
    for name, array in original.items():
        error = np.sqrt(np.mean((again[name] - array) ** 2) / np.mean(array**2))
        assert error < 0.1, name
    assert metadata(tmp_path / "x.gguf")["general.file_type"][0] == 15
    caplog.clear()
    convert_to_gguf(GOLDENS / "wide.Q6_K.gguf", tmp_path / "y.gguf", type="f32")
    assert not caplog.text
    for name, array in values(tmp_path / "y.gguf").items():
        np.testing.assert_array_equal(array, original[name])


def test_a_rope_that_is_scaled_in_two_ways_is_copied_in_both(tmp_path: Path) -> None:
    linear = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}
    factors = np.linspace(1, 4, 10, dtype=np.float32)
    source = rewritten(GOLDENS / "narrow.Q8_0.gguf", tmp_path / "a.gguf", linear, {"rope_freqs.weight": factors})
    convert_to_gguf(source, tmp_path / "b.gguf", type="f32")
    with GGUFFile(source) as a, GGUFFile(tmp_path / "b.gguf") as b:
        wanted, found = hf_config(a)["rope_scaling"], hf_config(b)["rope_scaling"]
    assert found == wanted
    assert wanted["long_factor"] == pytest.approx(2 * factors)


@pytest.mark.parametrize(("own", "new", "window"), [("Mistral v0.1", "x", 4096), ("x", "My Mistral", None)])
def test_another_name_does_not_change_the_window(tmp_path: Path, own: str, new: str, window: int | None) -> None:
    long = {"llama.context_length": 8192, "general.name": own}
    source = rewritten(GOLDENS / "narrow.Q8_0.gguf", tmp_path / "a.gguf", long)
    convert_to_gguf(source, tmp_path / "b.gguf", name=new)
    with GGUFFile(source) as a, GGUFFile(tmp_path / "b.gguf") as b:
        assert hf_config(a)["sliding_window"] == hf_config(b)["sliding_window"] == window


KILLED = """
import os, signal, sys
from conversion.to_gguf import convert_to_gguf
signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background begin with it ignored
def progress(done, total):
    if done > total / 2:
        os.kill(os.getpid(), getattr(signal, sys.argv[3]))
convert_to_gguf(sys.argv[1], sys.argv[2], type="bf16", progress=progress)
"""


@pytest.mark.parametrize(("number", "left"), [("SIGKILL", [".x.gguf.partial"]), ("SIGINT", [])])
def test_an_interruption_leaves_nothing_that_looks_whole(
    model: Path, tmp_path: Path, number: str, left: list[str]
) -> None:
    command = [sys.executable, "-c", KILLED, str(model), str(tmp_path / "x.gguf"), number]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -getattr(signal, number), done.stderr
    assert [entry.name for entry in tmp_path.iterdir()] == left
    convert_to_gguf(model, tmp_path / "x.gguf", type="bf16")
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.gguf"]


def test_progress_counts_the_bytes(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    convert_to_gguf(model, tmp_path / "x.gguf", type="f32", progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (4 * sum(array.size for array in random_tensors(CONFIG).values()),) * 2


def test_what_exists_is_not_overwritten_by_mistake(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"mine")
    with pytest.raises(OutputError, match="exists already"):
        convert_to_gguf(model, path)
    assert path.read_bytes() == b"mine"
    convert_to_gguf(model, path, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"


def test_bad_sources_are_refused_by_name(model: Path, tmp_path: Path) -> None:
    def refused(source: Path, match: str, kind: type[Exception] = WeightFileError, **arguments: Any) -> None:
        with pytest.raises(kind, match=match):
            convert_to_gguf(source, tmp_path / "x.gguf", **arguments)
        assert not list(tmp_path.glob("*x.gguf*"))

    refused(tmp_path / "missing", "no model folder and no GGUF file")
    refused(model, "no type 'q3_k'", ValueError, type="q3_k")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "neither config.json nor params.json")
    folder = write_folder(tmp_path / "moe", num_local_experts=8, architectures=["MixtralForCausalLM"])
    refused(folder, "MixtralForCausalLM")
    refused(write_folder(tmp_path / "fp8", quantization_config={"quant_method": "fp8"}), "quantised already")
    folder = write_folder(tmp_path / "broken")
    (folder / "config.json").write_text("{")
    refused(folder, "is no valid JSON")
    folder = write_folder(tmp_path / "no tokenizer")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    refused(folder, "tokenizer", TokenizerError)
    refused(write_folder(tmp_path / "small", vocab_size=300), "307 tokens and the model 300", TokenizerError)


def test_values_that_a_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    tensors = random_tensors(CONFIG)
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = 1e5
    folder = write_folder(tmp_path / "large", tensors=tensors)
    with pytest.raises(WeightFileError, match=r"blk\.1\.ffn_up\.weight.*\[3, 5\]"):
        convert_to_gguf(folder, tmp_path / "x.gguf", type="f16")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = np.nan
    folder = write_folder(tmp_path / "broken", tensors=tensors)
    with pytest.raises(WeightFileError, match=r"blk\.1\.ffn_up\.weight.*nan"):
        convert_to_gguf(folder, tmp_path / "x.gguf", type="q8_0")
    assert not list(tmp_path.glob("*x.gguf*"))
