"""The server as a process: it listens at once, drains on a signal, and exits with the right code."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.api.test_disconnect import head_of, raw_request
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


def check_lines(errors: str) -> None:
    """Every line has date, time and offset, and nothing returns to its beginning."""
    assert "\r" not in errors
    for line in errors.splitlines():
        stamp, level, _ = line.split(" ", 2)
        time_told = datetime.fromisoformat(stamp)
        assert time_told.utcoffset() is not None, line
        assert abs((time_told - datetime.now(UTC)).total_seconds()) < 300, line
        assert level in ("INFO", "WARNING", "ERROR"), line


@pytest.mark.parametrize(("sig", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_second_signal_cuts_off_what_runs_and_says_so_in_two_lines(
    sig: signal.Signals, status: int, tmp_path: Path
) -> None:
    log = tmp_path / "log.jsonl"
    with fake("endless", "--log", str(log)) as server, contextlib.ExitStack() as stack:
        server.wait_until("ok")
        for index in range(6):
            body = {"messages": MESSAGES, "stream": index % 2 > 0}
            stack.enter_context(raw_request(server.url, CHAT, body))
        wait_for(lambda: server.health().json()["running"] == 6)
        start = time.monotonic()
        server.popen.send_signal(sig)
        time.sleep(0.5)
        assert server.popen.poll() is None
        server.popen.send_signal(sig)
        code, errors = server.end()
    assert time.monotonic() - start < 20  # not the 30 seconds that it would wait
    assert code == status, errors
    lines = errors.splitlines()
    assert "stopping: waiting for 6 answers, 30 seconds at most (Ctrl-C, or another signal, stops at once)" in lines[-2]
    assert lines[-1].endswith("WARNING stopped at once: 6 requests were cut off")
    check_lines(errors)
    assert "Traceback" not in errors
    assert "Exception" not in errors
    assert len(log.read_text().splitlines()) == 6  # the requests


def test_streams_that_outlast_the_drain_and_are_not_read_end_without_a_traceback() -> None:
    with fake("flood", "--drain-timeout", "0") as server:
        server.wait_until("ok")
        body = json.dumps({"prompt": "x", "stream": True, "logprobs": 20, "n": 8}).encode()
        with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            connection.sendall(head_of("/v1/completions", len(body)) + body)
            wait_for(lambda: server.health().json()["running"] > 0)
            time.sleep(0.3)
            server.popen.send_signal(signal.SIGTERM)
            code, errors = server.end()
    assert code == 0, errors
    assert "Traceback" not in errors
    assert "Exception" not in errors


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX")
def test_sighup_opens_the_log_again_and_nothing_else(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    with fake("slow", "--log", str(log)) as server:
        server.wait_until("ok")
        httpx.get(f"{server.url}/v1/models")
        wait_for(lambda: log.read_text().count("\n") == 2)
        log.rename(tmp_path / "log.1")
        server.popen.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        httpx.get(f"{server.url}/v1/models")
        wait_for(lambda: log.exists() and log.read_text().count("\n") == 2)
        server.popen.send_signal(signal.SIGTERM)
        code, errors = server.end()
    assert code == 0
    assert errors.count("opened again") == 1
    assert (tmp_path / "log.1").read_text().count("\n") == 2


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
            assert time.monotonic() - start < 20


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
        (("--log", str(tmp_path)), "it is a folder; expected a file"),
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
