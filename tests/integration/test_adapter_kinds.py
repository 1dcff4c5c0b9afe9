"""Every way to start a server with adapters: its answers agree with the others', and what is wrong is one clear
line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from conversion.to_gguf import convert_to_gguf
from serving.build.build_service import build_service
from serving.settings.settings import Settings
from tests.integration.adapted_models import write_all
from tests.integration.conftest import start_server
from tests.serving.harness import TEXT, listening, wait_until_ready

pytestmark = pytest.mark.slow(by="file")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_all(tmp_path_factory.mktemp("kinds"))
    convert_to_gguf(root / "base", root / "base.gguf", type="f32")
    return root


@contextmanager
def serving(files: Path, **changes: Any) -> Iterator[str]:
    options = {
        "model_kind": "x-lora-mistral",
        "xlora_model_id": str(files / "mixture"),
        "loras": (str(files / "poet"),),
        "device": "cpu",
        "dtype": "float32",
        "max_seqs": 2,
        "max_seq_len": 64,
        "prefill_chunk": 16,
        "wait_for_programs": True,
        "compilation_cache": os.environ["JAX_COMPILATION_CACHE_DIR"],
        **changes,
    }
    options |= {"quantized_filename": str(files / "base.gguf")} if "gguf" in options["model_kind"] else {}
    options |= {} if "gguf" in options["model_kind"] else {"model_id": str(files / "base")}
    service = build_service(Settings(**options))
    with listening(service=service, **options) as server:
        wait_until_ready(service.engine)
        yield server.url


def complete(url: str, **body: Any) -> dict[str, Any]:
    body = {"prompt": "Once upon a time", "max_tokens": 24, "ignore_eos": True, "temperature": 0, "logprobs": 1, **body}
    response = httpx.post(url + TEXT, json=body, timeout=60)
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]


WHO = ("mixture", "two", "poet", "base")


@pytest.fixture(scope="module")
def expected(files: Path) -> dict[str, dict[str, Any]]:
    with serving(files) as url:
        return {who: complete(url, model=who, xlora={"scalings": "full"}) for who in WHO}


def test_a_gguf_base_gives_the_same_answers_and_weights(files: Path, expected: dict[str, dict[str, Any]]) -> None:
    with serving(files, model_kind="x-lora-gguf-mistral") as url:
        for who in WHO:
            got = complete(url, model=who, xlora={"scalings": "full"})
            assert got["text"] == expected[who]["text"]
            ours, theirs = ([t["weights"] for t in one["xlora"]["scalings"]] for one in (got, expected[who]))
            np.testing.assert_allclose(ours, theirs, atol=2e-6)
            likely = (one["logprobs"]["token_logprobs"] for one in (got, expected[who]))
            np.testing.assert_allclose(*likely, rtol=1e-5)


def test_without_a_cache_the_answers_are_the_same(files: Path, expected: dict[str, dict[str, Any]]) -> None:
    with serving(files, xlora_kv_cache=False) as url:
        for who in WHO:
            assert complete(url, model=who)["text"] == expected[who]["text"]
        refused = httpx.post(url + TEXT, json={"prompt": "x", "xlora": {"non_granular_index": 1}})
        assert refused.status_code == 400
        assert "--no-xlora-kv-cache" in refused.text


def test_lora_kinds_answer_as_the_base_until_an_adapter_is_named(
    files: Path, expected: dict[str, dict[str, Any]]
) -> None:
    with serving(files, model_kind="lora-mistral", xlora_model_id=None) as url:
        for body, who in (
            ({}, "base"),
            ({"model": "base"}, "base"),
            ({"model": "poet"}, "poet"),
            ({"adapter": "poet"}, "poet"),
        ):
            assert complete(url, **body)["text"] == expected[who]["text"]


def test_a_process_serves_an_adapter_over_a_gguf_file(files: Path, tmp_path: Path) -> None:
    options = (
        "-f",
        str(files / "base.gguf"),
        "--lora",
        f"bard={files / 'poet'}",
        "--max-seqs",
        "2",
        "--max-seq-len",
        "64",
    )
    server = start_server(tmp_path, "--dtype", "float32", command=("lora-mistral-gguf", *options))
    try:
        server.wait_until_healthy()
        models = httpx.get(f"{server.url}/v1/models").json()["data"]
        assert [(model["id"], model["parent"], model["root"]) for model in models] == [
            ("base", None, "base"),
            ("bard", "base", "poet"),
        ]
        assert complete(server.url, model="bard")["text"]
    finally:
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (("lora-mistral", "-m", "{base}", "--lora", "x={base}"), "has no adapter_config.json"),
        (("x-lora-mistral", "-m", "{base}", "-x", "{poet}"), "is no X-LoRA model"),
        (("x-lora-mistral", "-m", "{base}", "-x", "{mixture}", "-o", "{base}/none.json"), "there is no file"),
        (("lora-mistral", "-m", "{base}"), "--lora: no adapter is named"),
        (("x-lora-mistral", "--no-xlora-kv-cache", "--tgt-non-granular-index", "1"), "exclude each other"),
    ],
)
def test_what_is_wrong_is_one_clear_line(files: Path, tmp_path: Path, command: tuple[str, ...], message: str) -> None:
    names = {name: str(files / name) for name in ("base", "mixture", "poet")}
    server = start_server(tmp_path, command=tuple(part.format(**names) for part in command))
    assert server.popen.wait(60) == 2
    said = server.output.read_text()
    (error,) = (line for line in said.splitlines() if "ERROR" in line or line.startswith("Error"))
    assert message in error
    assert "Traceback" not in said
