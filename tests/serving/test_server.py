"""The server as a process: it listens at once, drains on a signal, and exits with the right code."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.harness import CHAT, MESSAGES, events_of, wait_for

ROOT = Path(__file__).parents[2]


@dataclass
class Process:
    url: str
    popen: subprocess.Popen[str]

    def health(self) -> Any:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/health", timeout=5)
        return None

    def wait_until(self, status: str) -> None:
        wait_for(lambda: (answer := self.health()) is not None and answer.json()["status"] == status, seconds=60)

    def end(self) -> tuple[int, str]:
        _, errors = self.popen.communicate(timeout=60)
        return self.popen.returncode, errors


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def process(*command: str, port: int | None = None, env: dict[str, str] | None = None) -> Generator[Process]:
    port = port or free_port()
    popen = subprocess.Popen(
        [sys.executable, "-W", "error", *(text.replace("PORT", str(port)) for text in command)],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
    )
    try:
        yield Process(f"http://127.0.0.1:{port}", popen)
    finally:
        if popen.poll() is None:
            popen.kill()
        popen.communicate()


def fake(plan: str, *options: str, port: int | None = None) -> contextlib.AbstractContextManager[Process]:
    return process("-m", "tests.serving.serve_fake", plan, "--port", "PORT", *options, "demo", port=port)


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_streams_finish_and_exits_with_0(sig: signal.Signals) -> None:
    bodies: list[str] = []
    with fake("slow") as server:
        server.wait_until("ok")

        def stream() -> None:
            response = httpx.post(f"{server.url}{CHAT}", json={"messages": MESSAGES, "stream": True}, timeout=20)
            bodies.append(response.text)

        thread = threading.Thread(target=stream)
        thread.start()
        wait_for(lambda: server.health().json()["running"] == 1)
        server.popen.send_signal(sig)
        thread.join(20)
        code, errors = server.end()
    content = [event["choices"][0]["delta"].get("content") for event in events_of(bodies[0])]
    assert content.count("x") == 50
    assert code == 0, errors
    assert "Traceback" not in errors


def test_answers_that_outlast_the_drain_timeout_end_with_an_error_event() -> None:
    with (
        fake("endless", "--drain-timeout", "0.5") as server,
        httpx.Client(timeout=20) as client,
    ):
        server.wait_until("ok")
        with client.stream("POST", f"{server.url}{CHAT}", json={"messages": MESSAGES, "stream": True}) as response:
            lines = response.iter_lines()
            next(lines)
            server.popen.send_signal(signal.SIGTERM)
            rest = "".join(lines)
        code, errors = server.end()
    assert '"code":"cancelled"' in rest
    assert rest.endswith("[DONE]")
    assert code == 0, errors


def test_a_second_signal_stops_at_once() -> None:
    with fake("endless") as server, httpx.Client(timeout=20) as client:
        server.wait_until("ok")
        with (
            contextlib.suppress(httpx.TransportError),
            client.stream("POST", f"{server.url}{CHAT}", json={"messages": MESSAGES, "stream": True}) as response,
        ):
            lines = response.iter_lines()  # kept: the end of a generator closes the connection
            next(lines)
            start = time.monotonic()
            server.popen.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            server.popen.send_signal(signal.SIGTERM)
            code, _ = server.end()
    assert code == 0
    assert time.monotonic() - start < 5


def test_signals_while_the_process_ends_change_nothing() -> None:
    with fake("slow") as server:
        server.wait_until("ok")
        for _ in range(200):
            server.popen.send_signal(signal.SIGTERM)
            if server.popen.poll() is not None:
                break
            time.sleep(0.005)
        code, errors = server.end()
    assert code == 0, errors


def test_while_loading_health_is_503_and_a_signal_ends_it() -> None:
    for plan in ("loading", "stuck"):
        with fake(plan) as server:
            server.wait_until("loading")
            response = httpx.post(f"{server.url}{CHAT}", json={"messages": MESSAGES})
            assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
            assert response.headers["retry-after"]
            start = time.monotonic()
            server.popen.send_signal(signal.SIGTERM)
            code, errors = server.end()
            assert code == 0, errors
            assert time.monotonic() - start < 5


def test_a_model_that_cannot_be_loaded_is_told_in_one_line_and_exits_with_1() -> None:
    with fake("missing") as server:
        server.wait_until("failed")
        assert "503" in str(server.health())
        code, errors = server.end()
    assert code == 1
    assert "the model could not be loaded: no model at ./nowhere" in errors
    assert "Traceback" not in errors


def test_an_engine_that_dies_fails_its_streams_turns_health_red_and_exits_with_1() -> None:
    with fake("dies") as server:
        server.wait_until("ok")
        response = httpx.post(f"{server.url}{CHAT}", json={"messages": MESSAGES, "stream": True})
        assert events_of(response.text)[-1]["error"]["message"] == "the engine failed"
        server.wait_until("failed")
        code, errors = server.end()
    assert code == 1
    assert "device lost" in errors


def test_a_port_in_use_is_told_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, fake("slow", port=listener.getsockname()[1]) as server:
        code, errors = server.end()
    assert code == 2
    assert errors.splitlines()[-1].startswith("Error: port ")
    assert "--port" in errors
    assert "Traceback" not in errors


def test_an_address_or_log_file_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    for options, text in (
        (("--host", "203.0.113.7"), "--host 203.0.113.7: cannot listen there"),
        (("--log", str(tmp_path / "no" / "log")), "--log"),
    ):
        with fake("slow", *options) as server:
            code, errors = server.end()
        assert code == 2
        assert text in errors.splitlines()[-1]
        assert errors.splitlines()[-1].startswith("Error: ")


def test_litestar_run_serves_the_same_from_the_environment() -> None:
    env = {
        "MISTRAL_JAX_MODEL_ID": "nobody/no-such-model",
        "MISTRAL_JAX_API_KEYS": "key",
        "MISTRAL_JAX_PORT": "1",  # address and port are Litestar's own options
        "LITESTAR_QUIET_CONSOLE": "1",
        "HF_HUB_OFFLINE": "1",
    }
    command = ("-m", "litestar", "--app", "serving.app:create_app", "run", "--port", "PORT")
    with process(*command, env=env) as server:
        wait_for(lambda: server.health() is not None, seconds=60)
        assert httpx.get(f"{server.url}/v1/models").status_code == 401
        assert httpx.get(f"{server.url}/").json()["name"] == "mistral-jax"
        server.popen.send_signal(signal.SIGTERM)
        server.end()
