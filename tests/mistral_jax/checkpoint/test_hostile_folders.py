"""Model folders that would hang whoever loads them, fill memory, or end in a traceback: one line, at once."""

from __future__ import annotations

import base64
import json
import os
import struct
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from conversion.inspection import inspect
from conversion.weights.tensor_source import WeightFileError
from mistral_jax.checkpoint.description import describe
from mistral_jax.checkpoint.weights import open_weights, plan_weights
from mistral_jax.hub.files import ModelFiles
from mistral_jax.model.config import ConfigError, MistralConfig
from mistral_jax.tokenizer import TokenizerError, load_tokenizer
from tests.conversion.tiny_models import CONFIG, write_folder, write_tokenizer

GOLDENS = Path(__file__).parents[2] / "goldens" / "tokenizers"
KINDS = ("byte_level", "byte_fallback")


@contextmanager
def refused(error: type[Exception], match: str, *, mib: int = 64) -> Iterator[None]:
    """One line, within seconds, and little memory that Python and numpy hold meanwhile."""
    start = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(error, match=match) as caught:
            yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert time.process_time() - start < 5
    assert peak < mib * 2**20


def parsed(kind: str) -> dict[str, Any]:
    return json.loads((GOLDENS / kind / "tokenizer.json").read_text())


def saved(folder: Path, data: Any, name: str = "tokenizer.json") -> Path:
    (folder / name).write_text(json.dumps(data))
    return folder


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("token_id", [2**21, 2**31, 2**32 - 1, 2**63, 10**400, -1, 1.5, True, "7", None])
@pytest.mark.parametrize("added", [False, True])
def test_an_id_beyond_all_vocabularies_makes_no_table(tmp_path: Path, kind: str, token_id: Any, added: bool) -> None:
    data = parsed(kind)
    if added:
        data["added_tokens"][-1]["id"] = token_id
    else:
        data["model"]["vocab"]["zzz"] = token_id
    with refused(TokenizerError, "expected a whole number from 0 to 2097151"):
        load_tokenizer(saved(tmp_path, data))


@pytest.mark.parametrize("kind", KINDS)
def test_an_id_far_from_the_others_makes_no_table(tmp_path: Path, kind: str) -> None:
    data = parsed(kind)
    data["model"]["vocab"]["zzz"] = 2**21 - 1
    with refused(TokenizerError, r"has a token with id 2097151 and \d+ tokens"):
        load_tokenizer(saved(tmp_path, data))


@pytest.mark.parametrize("name", ["added_tokens.json", "tokenizer_config.json"])
def test_nor_does_one_of_a_side_file(tmp_path: Path, name: str) -> None:
    write_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    listed = {"x": 2**31} if name == "added_tokens.json" else {"added_tokens_decoder": {str(2**31): {"content": "x"}}}
    with refused(TokenizerError, '"x" has id 2147483648'):
        load_tokenizer(saved(tmp_path, listed, name))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"default_num_special_tokens": 2**31, "default_vocab_size": 2**31 + 256}, "default_vocab_size is 2147483904"),
        ({"default_num_special_tokens": 1e999}, "default_num_special_tokens is Infinity"),
        ({"default_num_special_tokens": "20"}, 'default_num_special_tokens is "20"'),
        ({"pattern": 3}, "pattern is 3; expected a text"),
        ({"pattern": "("}, "cannot be used|form that we do not know"),
    ],
)
def test_a_tekken_vocabulary_of_any_size_is_refused_first(tmp_path: Path, changes: Any, match: str) -> None:
    vocab = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode()} for i in range(256)]
    config = {"pattern": ".", "version": "v3", "default_vocab_size": 276, "default_num_special_tokens": 20, **changes}
    with refused(TokenizerError, match):
        load_tokenizer(saved(tmp_path, {"config": config, "vocab": vocab}, "tekken.json"))


def test_a_long_token_is_refused_before_all_its_cuts_are_looked_at(tmp_path: Path) -> None:
    entries = [bytes([i]) for i in range(256)] + [b"a" * 2_000_000]
    vocab = [{"rank": i, "token_bytes": base64.b64encode(entry).decode()} for i, entry in enumerate(entries)]
    config = {"pattern": ".", "version": "v3", "default_vocab_size": 277, "default_num_special_tokens": 20}
    with refused(TokenizerError, "tokens of more than 1024 characters"):
        load_tokenizer(saved(tmp_path, {"config": config, "vocab": vocab}, "tekken.json"))


def test_a_panic_of_the_library_is_an_error_like_others(tmp_path: Path) -> None:
    """A table of characters that is no such table makes it panic, which is no `Exception`."""
    data = parsed("byte_fallback")
    data["normalizer"] = {"type": "Sequence", "normalizers": [data["normalizer"]]}
    data["normalizer"]["normalizers"] += [{"type": "Precompiled", "precompiled_charsmap": "AAAA"}]
    with refused(TokenizerError, "tokenizers library|form that we do not know"):
        load_tokenizer(saved(tmp_path, data))


NAMES = ("config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
NAMES += ("generation_config.json", "chat_template.jinja", "chat_template.json")


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize("make", [fifo, endless, huge])
@pytest.mark.parametrize("name", NAMES)
def test_no_file_of_a_folder_hangs_or_fills_memory(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    folder = write_folder(tmp_path / "model")
    write_tokenizer(folder)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with refused(ValueError, "cannot be read: (no regular file|it has 1,099,511,627,776 bytes)"):
        describe(ModelFiles(name="x", folder=folder))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_inspect_says_so_too(tmp_path: Path, name: str) -> None:
    folder = write_folder(tmp_path / "model")
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with refused(WeightFileError, "no regular file|no weights"):
        inspect(folder)
    with refused(WeightFileError, "no regular file|neither"):
        inspect(folder / name)


@pytest.mark.parametrize("name", ["config.json", "params.json"])
@pytest.mark.parametrize(
    "text",
    ['{"a":' * 50_000, "\xff", "[1]", '{"n_layers": 1e999}', '{"dim": ' + "9" * 5000 + "}", "\ufeff", '"\\ud800"'],
)
def test_a_configuration_that_is_no_json_object_is_refused(tmp_path: Path, name: str, text: str) -> None:
    write_folder(tmp_path / "model")
    (tmp_path / "model" / "config.json").unlink()
    (tmp_path / "model" / name).write_bytes(text.encode("latin-1") if text == "\xff" else text.encode())
    with refused(ConfigError, "model/"):
        MistralConfig.from_folder(tmp_path / "model")


def test_layers_that_the_files_do_not_have_are_refused_before_they_are_made(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model")
    config = MistralConfig.from_hf({**CONFIG, "num_hidden_layers": 1024})
    source = open_weights(config, [folder / "model.safetensors"])
    with refused(WeightFileError, "it has 1024 layers, and the files have tensors of 3"):
        plan_weights(config, source, dtype="float32", quant="auto")


def test_inspect_shows_a_tensor_of_a_type_that_nobody_knows(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F8_E9", "shape": [3], "data_offsets": [0, 7]}}).encode()
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(7))
    found = inspect(path)
    assert found.problem == "tensors of type F8_E9 are not implemented"
    assert [(tensor.type, tensor.nbytes) for tensor in found.tensors] == [("F8_E9", 7)]
