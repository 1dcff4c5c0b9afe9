"""A GGUF file served with nothing else at hand."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import openai
import pytest

import mistral_jax
from tests.integration.conftest import start_server

pytestmark = pytest.mark.slow(by="file")

FILE = Path(__file__).parents[1] / "goldens" / "gguf" / "wide.Q4_K_M.gguf"


@pytest.mark.parametrize("command", ["gguf-mistral", "mistral-gguf"])
def test_a_gguf_file_is_served_on_its_own(command: str, tmp_path: Path) -> None:
    path = Path(shutil.copy(FILE, tmp_path / "alone.gguf"))
    server = start_server(tmp_path, command=(command, "-f", str(path), "--max-seq-len", "64", "--max-seqs", "2"))
    try:
        server.wait_until_healthy()
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
            assert [model.id for model in client.models.list()] == ["alone"]
            answer = client.completions.create(model="alone", prompt="The capital", max_tokens=20, temperature=0)
            message = {"role": "user", "content": "Hello"}
            chat = client.chat.completions.create(model="alone", messages=[message], max_tokens=5)  # type: ignore[list-item]
        model = mistral_jax.load(path, slots=2, length=64, progress=False)
        assert answer.choices[0].text == model.generate("The capital", max_tokens=20, temperature=0).text
        assert chat.usage is not None
        assert chat.usage.completion_tokens >= 1
        assert "bits per weight" in server.output.read_text()
    finally:
        server.popen.send_signal(signal.SIGTERM)
        assert server.popen.wait(30) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"GGUF", "truncated"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-lfs"),
        (b"", "empty"),
    ],
)
def test_a_broken_file_is_one_clear_line(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    server = start_server(tmp_path, command=("gguf-mistral", "-f", str(path)))
    assert server.popen.wait(60) == 1
    said = server.output.read_text()
    (error,) = (line for line in said.splitlines() if "ERROR" in line)
    assert "the model could not be loaded" in error
    assert message in error.lower()
    assert "Traceback" not in said
