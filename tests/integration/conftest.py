"""The real server as a process, on the bundled model: one for all integration tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]


@dataclass
class ServerProcess:
    url: str
    popen: subprocess.Popen[bytes]
    log: Path
    """Requests and responses as JSON lines."""
    output: Path

    def wait_until_healthy(self, seconds: float = 500.0) -> float:
        """Returns after how many seconds it was."""
        start = time.monotonic()
        while time.monotonic() < start + seconds:
            assert self.popen.poll() is None, self.output.read_text()
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return time.monotonic() - start
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        raise AssertionError(f"not healthy after {seconds} s:\n{self.output.read_text()}")

    def health(self) -> dict:
        return httpx.get(f"{self.url}/health", timeout=5).json()


def start_server(folder: Path, *arguments: str, command: tuple[str, ...] = ("demo",)) -> ServerProcess:
    """Start `mistral-jax … demo` on a free port, with the compiled programs of the test run."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    log, output = folder / "requests.jsonl", folder / "output.txt"
    command_line = [
        *(sys.executable, "-m", "serving.commands.cli", "--port", str(port), "--log", str(log)),
        *("--compilation-cache", os.environ["JAX_COMPILATION_CACHE_DIR"]),
        *arguments,
        *command,
    ]
    with output.open("wb") as file:
        popen = subprocess.Popen(command_line, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT)
    return ServerProcess(f"http://127.0.0.1:{port}", popen, log, output)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    process = start_server(tmp_path_factory.mktemp("server"))
    try:
        process.wait_until_healthy()
        yield process
    finally:
        process.popen.terminate()
        assert process.popen.wait(60) == 0, process.output.read_text()
