"""GGUF files to folders: to the bit where the types allow it, whole or absent, and readable by others."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open

from conversion.files.output_files import OutputError
from conversion.gguf.container.file import GGUFFile
from conversion.gguf.source import GGUFSource
from conversion.to_gguf import convert_to_gguf
from conversion.to_safetensors import convert_to_safetensors
from conversion.weights.safetensors_io import SafetensorsFiles, read_array
from conversion.weights.tensor_source import WeightFileError
from conversion.weights.weight_files import find_weight_files
from mistral_jax.model.config import MistralConfig
from mistral_jax.tokenizer import load_tokenizer
from tests.conversion.tiny_models import CONFIG, DEMO, GOLDENS, random_tensors, write_folder

DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
TEXTS = ("", "Hello, World!", "  two  spaces ", "naïve 😀\n\tx", "<s>[INST] x", "▁a")


def read_folder(folder: Path) -> dict[str, np.ndarray]:
    files = SafetensorsFiles(find_weight_files(folder))
    return {name: read_array(files, name) for name in files.names()}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_round_trip_gives_back_every_bit(tmp_path: Path, kind: str, tied: bool) -> None:
    original = write_folder(tmp_path / "a", dtype=DTYPES[kind], tie_word_embeddings=tied)
    convert_to_gguf(original, tmp_path / "b.gguf", type=kind)
    convert_to_safetensors(tmp_path / "b.gguf", tmp_path / "c")
    before, after = read_folder(original), read_folder(tmp_path / "c")
    assert before.keys() == after.keys()
    for name, array in before.items():
        assert after[name].dtype == array.dtype
        assert after[name].tobytes() == array.tobytes(), name
    configs = [MistralConfig.from_folder(folder) for folder in (original, tmp_path / "c")]
    changes = {"architecture": "", "dtype": None}
    assert {**vars(configs[0]), **changes} == {**vars(configs[1]), **changes}
    assert read_json(tmp_path / "c" / "generation_config.json") == {
        **{"bos_token_id": 1, "eos_token_id": 2, "do_sample": True},
        **{"temperature": 0.7, "top_k": 40},
    }


def test_the_tokenizer_and_the_template_come_through(tmp_path: Path) -> None:
    convert_to_gguf(DEMO, tmp_path / "demo.gguf", type="bf16")
    convert_to_safetensors(tmp_path / "demo.gguf", tmp_path / "demo")
    before, after = load_tokenizer(DEMO), load_tokenizer(tmp_path / "demo")
    assert [after.encode(text) for text in TEXTS] == [before.encode(text) for text in TEXTS]
    assert after.control_tokens == before.control_tokens
    template = read_json(DEMO / "tokenizer_config.json")["chat_template"]
    assert read_json(tmp_path / "demo" / "tokenizer_config.json")["chat_template"] == template


def test_llama3_rope_comes_through_both_ways(tmp_path: Path) -> None:
    source = GOLDENS / "llama3.Q8_0.gguf"
    convert_to_safetensors(source, tmp_path / "a", dtype="f32")
    convert_to_gguf(tmp_path / "a", tmp_path / "b.gguf", type="f32")
    factors = [
        next(tensor.data for tensor in gguf.GGUFReader(path).tensors if tensor.name == "rope_freqs.weight")
        for path in (source, tmp_path / "b.gguf")
    ]
    np.testing.assert_array_equal(*factors)
    with GGUFFile(source) as file:
        tensors = GGUFSource(file)
        for name, array in read_folder(tmp_path / "a").items():
            expected = np.empty(array.shape, np.float32)
            tensors.read_into(name, expected)
            np.testing.assert_array_equal(array, expected)


def test_large_models_are_written_in_shards(tmp_path: Path) -> None:
    convert_to_gguf(write_folder(tmp_path / "a"), tmp_path / "b.gguf", type="f32")
    convert_to_safetensors(tmp_path / "b.gguf", tmp_path / "c", shard_bytes=400_000)
    shards = sorted((tmp_path / "c").glob("model-*-of-*.safetensors"))
    index = read_json(tmp_path / "c" / "model.safetensors.index.json")
    assert len(shards) > 2
    assert sorted(set(index["weight_map"].values())) == [shard.name for shard in shards]
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in random_tensors(CONFIG).values())
    for shard in shards:
        with safe_open(shard, framework="numpy") as file:
            assert file.metadata() == {"format": "pt"}
            names = list(file.keys())
            for name in names:
                np.testing.assert_array_equal(file.get_tensor(name), random_tensors(CONFIG)[name])
        assert len(names) == 1 or sum(random_tensors(CONFIG)[name].nbytes for name in names) <= 400_000


KILLED = """
import os, signal, sys
from conversion.to_safetensors import convert_to_safetensors
def progress(done, total):
    if done > total / 2:
        os.kill(os.getpid(), signal.SIGKILL)
convert_to_safetensors(sys.argv[1], sys.argv[2], progress=progress)
"""


def test_an_interruption_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    source, target = GOLDENS / "narrow.BF16.gguf", tmp_path / "x"
    subprocess.run([sys.executable, "-c", KILLED, str(source), str(target)], capture_output=True, check=False)
    assert [entry.name for entry in tmp_path.iterdir()] == [".x.partial"]

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_to_safetensors(source, target, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_only_folders_of_models_are_overwritten(tmp_path: Path) -> None:
    source, target = GOLDENS / "narrow.BF16.gguf", tmp_path / "x"
    convert_to_safetensors(source, target)
    with pytest.raises(OutputError, match="exists already"):
        convert_to_safetensors(source, target)
    convert_to_safetensors(source, target, dtype="f32", overwrite=True)
    assert read_json(target / "config.json")["torch_dtype"] == "float32"
    (target / "notes.txt").touch()
    with pytest.raises(OutputError, match=r"notes\.txt"):
        convert_to_safetensors(source, target, overwrite=True)


def test_bad_sources_are_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightFileError, match="missing"):
        convert_to_safetensors(tmp_path / "missing.gguf", tmp_path / "x")
    with pytest.raises(ValueError, match="'q8_0'; expected one of f32, f16, bf16"):
        convert_to_safetensors(GOLDENS / "narrow.BF16.gguf", tmp_path / "x", dtype="q8_0")
    tensors = random_tensors(CONFIG)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e6
    convert_to_gguf(write_folder(tmp_path / "large", tensors=tensors), tmp_path / "large.gguf", type="f32")
    with pytest.raises(WeightFileError, match=r"model\.layers\.0\.mlp\.up_proj\.weight has values beyond 65504"):
        convert_to_safetensors(tmp_path / "large.gguf", tmp_path / "x", dtype="f16")
    assert not list(tmp_path.glob("*x*"))
