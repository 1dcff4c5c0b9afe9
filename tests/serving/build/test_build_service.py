"""From settings to what is built: the names that answers carry, and settings that every command honours."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import serving.commands.chat
from mistral_jax.chat import ChatFormatter
from mistral_jax.checkpoint.description import ModelDescription
from mistral_jax.hub.files import ModelFiles
from mistral_jax.model.config import MistralConfig
from mistral_jax.runtime.buckets import DEFAULT_CHUNKS
from serving.api.service.served_models import NameTakenError
from serving.build.build_service import build_service, chat_format, chunk_sizes, fingerprint, use_compilation_cache
from serving.commands.chat import run_chat
from serving.settings.settings import Settings
from tests.mistral_jax.tokenizer.tokenizer_corpus import tokenizer
from tests.serving.fakes import FakeChat, FakeTokenizer

CONFIG = MistralConfig(
    vocab_size=259,
    hidden_size=20,
    intermediate_size=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=10,
    max_position_embeddings=64,
    layer_windows=(None,),
)


def described(folder: Path, **files: Any) -> ModelDescription:
    found = ModelFiles(name="x", folder=folder, **files)
    chat: Any = FakeChat()
    return ModelDescription(
        files=found, config=CONFIG, tokenizer=FakeTokenizer(), chat=chat, eos_ids=frozenset({2}), defaults={}
    )


@pytest.mark.parametrize(("given", "found"), [("auto", "mistral-v3"), ("none", None), ("hermes", "hermes")])
def test_the_format_of_tool_calls_may_be_set(tmp_path: Path, given: Any, found: str | None) -> None:
    formatter = ChatFormatter("{{ tools | tojson }}[TOOL_CALLS]", tokenizer("v3"))
    chat = chat_format(Settings(tool_format=given), replace(described(tmp_path), chat=formatter))
    assert chat is not None
    assert (chat.output.tools and chat.output.tools.name) == found
    assert chat_format(Settings(tool_format=given), replace(described(tmp_path), chat=None)) is None


def test_a_fingerprint_changes_with_what_decides_an_answer(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    (tmp_path / "tuned.safetensors").write_bytes(b"2")
    plain = described(tmp_path)
    seen = {
        fingerprint(plain),
        fingerprint(plain, "float32", "cpu"),
        fingerprint(plain, "bfloat16", "cpu"),
        fingerprint(replace(plain, config=replace(CONFIG, rms_norm_eps=1e-3))),
        fingerprint(described(tmp_path, weight_files=("tuned.safetensors",))),
    }
    (tmp_path / "model.safetensors").write_bytes(b"another")
    seen.add(fingerprint(plain))
    assert len(seen) == 6


def test_the_fingerprint_of_a_model_from_the_hub_is_the_same_before_and_after_its_weights_are_fetched(
    tmp_path: Path,
) -> None:
    for commit in ("aaa", "bbb"):
        (tmp_path / commit).mkdir()
    before = fingerprint(described(tmp_path / "aaa", repo_id="a/b"))
    (tmp_path / "aaa" / "model.safetensors").write_bytes(b"1")
    assert fingerprint(described(tmp_path / "aaa", repo_id="a/b")) == before
    assert fingerprint(described(tmp_path / "bbb", repo_id="a/b")) != before


def test_the_fingerprint_tells_the_gguf_files_of_a_repository_apart(tmp_path: Path) -> None:
    seen = {
        fingerprint(described(tmp_path, repo_id="a/b", gguf=tmp_path / name)) for name in ("x.Q4_0.gguf", "x.Q8_0.gguf")
    }
    assert len(seen) == 2


@pytest.mark.parametrize(
    ("longest", "sizes"),
    [(None, DEFAULT_CHUNKS), (2, (2,)), (16, (16,)), (100, (16, 64, 100)), (5000, (16, 64, 256, 5000))],
)
def test_chunk_sizes(longest: int | None, sizes: tuple[int, ...]) -> None:
    assert chunk_sizes(Settings(prefill_chunk=longest)) == sizes


def test_a_folder_that_cannot_keep_programs_is_told_with_its_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot keep compiled programs in .*file.*--compilation-cache"):
        use_compilation_cache(Settings(compilation_cache=str(tmp_path / "file")))


def test_chat_honours_the_settings_of_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flax import nnx

    from mistral_jax.model.mistral import Mistral
    from mistral_jax.runtime.runner import Runner

    made: list[Runner] = []
    monkeypatch.setattr(Runner, "warm_up", lambda self, state: made.append(self))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr(serving.commands.chat, "model_files", lambda settings: None)
    monkeypatch.setattr(serving.commands.chat, "describe", lambda files, chat_template: described(tmp_path))
    monkeypatch.setattr(
        serving.commands.chat, "load_weights_of", lambda *args, **options: Mistral(CONFIG, rngs=nnx.Rngs(0))
    )
    settings = Settings(
        model_kind="mistral",
        model_id="a/b",
        compilation_cache="none",
        max_seq_len=48,
        prefill_chunk=20,
        repeat_last_n=5,
        device="cpu",
    )
    assert run_chat(settings, system=None) == 0
    assert [(r.slots, r.length, r.chunk_sizes, r.repeat_last_n) for r in made] == [(1, 48, (16, 20), 5)]


def test_aliases_are_names_of_the_default_and_a_taken_one_stops_the_start() -> None:
    served = build_service(Settings(aliases=("gpt-4o",), compilation_cache="none")).models
    assert served.find("gpt-4o") is served.default
    with pytest.raises(NameTakenError, match="--alias demo-text: 'demo-text' is the name of the adapter 'demo-text'"):
        build_service(Settings(aliases=("demo-text",), compilation_cache="none"))
