"""The real server on a tiny model, one for the tests of all clients."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest

from tests.clients.model import write_model
from tests.integration.conftest import ServerProcess, start_server

KEY = "secret"
SLOTS, QUEUE = 4, 12


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("clients") / "tiny")


@pytest.fixture(scope="session")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    options = {"--api-key": KEY, "--served-name": "tiny", "--max-seqs": SLOTS, "--max-queue": QUEUE}
    process = start_server(
        tmp_path_factory.mktemp("clients-server"),
        *(str(word) for option in options.items() for word in option),
        "--tokenizer-info-endpoint",
        command=("mistral", "-m", str(model_folder)),
    )
    try:
        process.wait_until_healthy()
        yield process
    finally:
        process.popen.terminate()
        assert process.popen.wait(60) == 0, process.output.read_text()


@pytest.fixture(scope="session")
def url(server: ServerProcess) -> str:
    """The base URL of clients of OpenAI's API."""
    return f"{server.url}/v1"


@pytest.fixture(scope="session")
def require(server: ServerProcess) -> Callable[[str], None]:
    """Skips a test of an endpoint that the server does not describe."""
    paths = httpx.get(f"{server.url}/openapi.json", timeout=30).json()["paths"]

    def require(path: str) -> None:
        if path not in paths:
            pytest.skip(f"this server has no {path}")

    return require


@pytest.fixture
def full_queue(server: ServerProcess) -> Callable[[], AbstractContextManager[Callable[[], None]]]:
    """A context in which the server refuses requests with 503, until the function that it gives is called."""

    @contextlib.contextmanager
    def full_queue() -> Iterator[Callable[[], None]]:
        headers = {"Authorization": f"Bearer {KEY}"}
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(httpx.Client(base_url=server.url, headers=headers, timeout=30))
            for count, busy in ((SLOTS, "running"), (QUEUE, "waiting")):
                body = {"prompt": ["Once"] * count, "max_tokens": 1900, "ignore_eos": True, "stream": True}
                response = stack.enter_context(client.stream("POST", "/v1/completions", json=body))
                assert response.status_code == 200, response.read()
                deadline = time.monotonic() + 30
                while server.health()[busy] < count:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
            yield stack.close

    return full_queue
