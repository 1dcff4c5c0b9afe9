"""Connections that idle, drip or do not read, on a real port: they keep nobody out, and honest ones are left alone."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import serving.connections
from serving.connections import address_of
from serving.server import connection_limit
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, Listening, listening, wait_for

BODY = json.dumps({"messages": MESSAGES}).encode()
HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=10)


def request(body: bytes = BODY) -> bytes:
    return HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body


def read_response(connection: socket.socket) -> bytes:
    """One response with a Content-Length."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536) or pytest.fail(f"closed after {data!r}")
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536) or pytest.fail("closed in the middle of a response")
    assert len(body) == length, "more than one response"
    return head + b"\r\n\r\n" + body


def is_closed(connection: socket.socket) -> bool:
    connection.setblocking(False)
    try:
        while connection.recv(65536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving.connections, "HEADER_TIMEOUT", 1.0)
    monkeypatch.setattr(serving.connections, "WRITE_TIMEOUT", 1.0)
    monkeypatch.setattr(serving.connections, "SETTLING", 0.1)


@pytest.mark.usefixtures("quick")
def test_headers_have_a_deadline_in_the_first_request_and_in_later_ones() -> None:
    with listening() as server, contextlib.ExitStack() as stack:
        silent, dripping, later = (stack.enter_context(connect(server.url)) for _ in range(3))
        later.sendall(GET)
        assert read_response(later).startswith(b"HTTP/1.1 200")
        for byte in (GET[:-2] + b"X-Slow: " + b"x" * 1000)[:35]:
            for connection in (dripping, later):
                with contextlib.suppress(OSError):
                    connection.send(bytes([byte]))
            time.sleep(0.1)
        assert is_closed(silent)
        for connection in (dripping, later):
            connection.setblocking(True)
            assert connection.recv(4096).startswith(b"HTTP/1.1 408")
        wait_for(lambda: not server.server.connections.open)
        assert not server.server.server_state.connections


@pytest.mark.usefixtures("quick")
def test_what_takes_long_for_good_reasons_is_left_alone() -> None:
    """Time between two requests, a slow body, a long stream, a slow answer."""
    with listening(FakeEngine("x" * 30, delay=0.1)) as server, contextlib.ExitStack() as stack:
        kept, slow, streaming = (stack.enter_context(connect(server.url)) for _ in range(3))
        kept.sendall(GET)
        read_response(kept)
        slow.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(BODY))
        body = json.dumps({"messages": MESSAGES, "stream": True}).encode()
        streaming.sendall(request(body))
        for byte in BODY:
            slow.send(bytes([byte]))
            time.sleep(2.5 / len(BODY))
        assert read_response(slow).startswith(b"HTTP/1.1 200")
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += streaming.recv(65536) or pytest.fail("the stream was closed")
        assert b"[DONE]" in data
        kept.sendall(GET)
        assert read_response(kept).startswith(b"HTTP/1.1 200")


def test_requests_that_come_together_are_answered_in_order() -> None:
    with listening() as server, connect(server.url) as connection:
        connection.sendall(b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n" + request() + GET + GET[:10])
        data = b""
        while data.count(b"HTTP/1.1 200") < 3 or not data.endswith(b"}"):
            data += connection.recv(65536) or pytest.fail("closed")
        kinds = [data.index(mark) for mark in (b'"object":"list"', b'"object":"chat.completion"', b'"status":"ok"')]
        assert kinds == sorted(kinds)
        connection.sendall(GET[10:])
        assert read_response(connection).startswith(b"HTTP/1.1 200")


def test_large_bodies_arrive_whole_however_they_are_sent() -> None:
    text = json.dumps({"messages": [{"role": "user", "content": "raise"}], "user": "ü, {[" * 1_000_000}).encode()
    with listening() as server, httpx.Client(timeout=60, headers={"Content-Type": "application/json"}) as client:
        for content in (text, (text[i : i + 1000] for i in range(0, len(text), 1000))):
            response = client.post(f"{server.url}{CHAT}", content=content)
            assert response.json()["error"]["code"] == "invalid_messages", response.text


def test_a_body_in_tiny_chunks_is_refused_before_it_holds_up_others() -> None:
    with listening() as server, connect(server.url) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(OSError):
            connection.sendall(b"1\r\n \r\n" * 200_000)
        wait_for(lambda: not server.server.server_state.tasks)
        assert server.server.host.bodies.taken == 0
        with connect(server.url) as other:
            # A short body may come as it likes.
            other.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
            other.sendall(b"".join(b"1\r\n%c\r\n" % byte for byte in BODY) + b"0\r\n\r\n")
            assert read_response(other).startswith(b"HTTP/1.1 200")
        assert is_closed(connection)


@pytest.mark.usefixtures("quick")
def test_responses_that_nobody_reads_are_given_up() -> None:
    with listening() as server, connect(server.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            for _ in range(3000):
                connection.send(b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n")
        wait_for(lambda: server.server.connections.open)
        wait_for(lambda: not server.server.connections.open and not server.server.server_state.tasks, seconds=20)


def drip(connections: list[socket.socket], stop: threading.Event) -> None:
    while not stop.wait(0.2):
        for connection in connections[::2]:
            with contextlib.suppress(OSError):
                connection.send(b"x")


@contextlib.contextmanager
def crowd(url: str, number: int, first: bytes = b"GET / HTTP/1.1\r\nX: ") -> Iterator[list[socket.socket]]:
    """So many connections that do not complete a request; every other one sends a byte now and then."""
    stop = threading.Event()
    with contextlib.ExitStack() as stack:
        connections: list[socket.socket] = []
        for index in range(number):
            connection = stack.enter_context(connect(url))
            connection.setblocking(False)
            if index % 2 == 0:
                with contextlib.suppress(OSError):
                    connection.send(first)
            connections.append(connection)
        thread = threading.Thread(target=drip, args=(connections, stop))
        thread.start()
        try:
            yield connections
        finally:
            stop.set()
            thread.join()


def asks_health(url: str, times: int = 5) -> None:
    """Each time over a connection of its own."""
    for _ in range(times):
        with connect(url) as connection:
            connection.sendall(GET)
            assert read_response(connection).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nX: ", HEAD + b"Content-Length: 9999\r\n\r\n"])
def test_when_all_places_are_taken_idle_ones_and_unfinished_requests_give_way(first: bytes) -> None:
    engine = FakeEngine("x" * 200, delay=0.05)
    with listening(engine, max_connections=40) as server, connect(server.url) as streaming:
        streaming.sendall(request(json.dumps({"messages": MESSAGES, "stream": True}).encode()))
        wait_for(lambda: engine.live == 1)
        with crowd(server.url, 150, first):
            asks_health(server.url)
            assert len(server.server.connections.open) <= 40
        assert engine.live == 1  # a request in progress keeps its place
        assert b"data: " in streaming.recv(65536)


def test_when_all_places_answer_a_new_connection_is_refused_at_once() -> None:
    gate = threading.Event()
    engine = FakeEngine("x", gate=gate, slots=2)
    with listening(engine, max_connections=8) as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(server.url)) for _ in range(8)]
        for connection in busy:
            connection.sendall(request())
        wait_for(lambda: engine.live == 8)
        with pytest.raises(httpx.TransportError):
            httpx.get(f"{server.url}/health", timeout=5)
        gate.set()
        assert all(read_response(connection).startswith(b"HTTP/1.1 200") for connection in busy)
        wait_for(lambda: _is_ready(server.url))


@pytest.mark.usefixtures("quick")
def test_one_address_has_so_many_idle_connections_and_any_number_of_busy_ones() -> None:
    engine = FakeEngine("x" * 100, delay=0.05, slots=20)
    with listening(engine, max_idle_per_address=5) as server, contextlib.ExitStack() as stack:
        busy = [stack.enter_context(connect(server.url)) for _ in range(15)]
        for connection in busy:
            connection.sendall(request())
        idle = [stack.enter_context(connect(server.url)) for _ in range(12)]
        for connection in idle:
            connection.sendall(GET)
            read_response(connection)
        wait_for(lambda: len(server.server.connections.open) == 20)
        assert [is_closed(connection) for connection in idle] == [True] * 7 + [False] * 5  # the oldest went
        assert all(read_response(connection).startswith(b"HTTP/1.1 200") for connection in busy)


LIMITED = ("sh", "-c", 'ulimit -n 600; exec "$0" "$@"')
"""Runs the command that follows with at most 600 files; code between fork and exec may hang under JAX."""


def test_a_thousand_idle_connections_do_not_exhaust_the_files_of_the_process(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with (tmp_path / "errors").open("w") as errors:
        popen = subprocess.Popen(
            [*LIMITED, sys.executable, "-m", "tests.serving.serve_fake", "slow", "--port", str(port), "demo"],
            stderr=errors,
            cwd=Path(__file__).parents[2],
        )
        url = f"http://127.0.0.1:{port}"
        try:
            wait_for(lambda: _is_ready(url), seconds=30)
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 2048)), hard))
            with crowd(url, 1000):
                asks_health(url, 20)
                with connect(url) as connection:
                    connection.sendall(request())
                    assert read_response(connection).startswith(b"HTTP/1.1 200")
        finally:
            popen.send_signal(signal.SIGTERM)
            popen.wait(20)
    told = (tmp_path / "errors").read_text()
    assert "the process may open 600 files, so there can be 344 connections" in told
    assert told.count("new ones replace idle ones") == 1
    assert "Traceback" not in told
    assert "out of system resource" not in told


def _is_ready(url: str) -> bool:
    with contextlib.suppress(OSError, AssertionError, pytest.fail.Exception):
        asks_health(url, 1)
        return True
    return False


def test_the_limit_of_open_files_is_raised_where_that_is_allowed() -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        limit = connection_limit(4096)
        assert 256 <= limit <= 4096
        assert limit + 256 <= resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        assert connection_limit(100) == 100
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        (("10.0.0.1", 5), "10.0.0.1"),
        (("2001:db8:1:2:3::4", 5, 0, 0), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 5, 0, 0), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5, 0, 2), "fe80::/64"),
        (("::ffff:10.0.0.1", 5, 0, 0), "10.0.0.1"),
        ("/run/socket", ""),
        (None, ""),
    ],
)
def test_what_counts_as_one_address(peer: object, address: str) -> None:
    assert address_of(peer) == address


def test_closed_connections_leave_nothing_behind() -> None:
    with listening() as server:
        for _ in range(3):
            with crowd(server.url, 50):
                wait_for(lambda: len(server.server.connections.open) == 50)
            wait_for(lambda: not server.server.connections.open)
        assert _memory_of(server) == 0


def _memory_of(server: Listening) -> int:
    return len(server.server.server_state.connections) + len(server.server.server_state.tasks)
