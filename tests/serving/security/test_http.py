"""Headers: their number and size; what is not HTTP; and clients that are slow. More is in
`tests.serving.test_connections`."""

from __future__ import annotations

import contextlib
import json
import logging
import socket
import time

import pytest

from serving.api.access import MAX_HEADERS
from tests.serving.fakes import FakeEngine
from tests.serving.harness import MESSAGES, Listening, listening, wait_for
from tests.serving.test_connections import GET, HEAD, asks_health, connect, read_response, request

LIMIT = 16 * 1024


def answer(url: str, data: bytes) -> tuple[int, dict[str, object]]:
    """Status and error of the response to some bytes; the connection must be closed after it, or stay usable."""
    with connect(url) as connection:
        with contextlib.suppress(OSError):  # it may be closed while we still send
            connection.sendall(data)
        response = read_response(connection)
    head, _, body = response.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head.lower()
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * (2 * LIMIT),
        b"X: a\r\n" * (LIMIT // 3),
        b"X" * (2 * LIMIT) + b": a",
        b"Authorization: Bearer " + b"k" * (3 * LIMIT),
        b"Cookie: " + b"a=b; " * LIMIT,
    ],
    ids=["value", "lines", "name", "key", "cookie"],
)
def test_header_dos_headers_have_a_size(headers: bytes) -> None:
    with listening() as server:
        status, error = answer(server.url, b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n")
        assert (status, error["code"]) == (431, "headers_too_large")
        asks_health(server.url, 1)


def test_header_dos_the_line_of_the_request_has_a_size() -> None:
    with listening() as server:
        status, _ = answer(server.url, b"GET /" + b"a" * (2 * LIMIT) + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert status == 431


def test_header_dos_headers_have_a_number() -> None:
    with listening() as server, connect(server.url) as connection:
        for number, expected in ((MAX_HEADERS - 1, 200), (MAX_HEADERS, 431)):
            lines = b"".join(b"X-%d: 1\r\n" % index for index in range(number))
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n")
            head = read_response(connection)
            assert head.startswith(b"HTTP/1.1 %d" % expected)
        assert b"headers_too_large" in head


def test_header_dos_trailers_have_a_size() -> None:
    """Headers after a body in chunks."""
    with listening(FakeEngine("ok")) as server, connect(server.url) as connection:
        connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
        with contextlib.suppress(OSError):
            for _ in range(100):
                connection.sendall(b"X: " + b"a" * 1000 + b"\r\n")
        wait_for(lambda: not server.server.server_state.tasks)
        asks_health(server.url, 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",  # TLS
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",  # no Host
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX\x00: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nNo colon\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: " + b"9" * 30 + b"\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nffffffffffffffffffffff\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"a" * 40_000 + b"\r\n",
    ],
)
def test_header_dos_what_is_not_http_is_an_error_of_one_line(data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with listening() as server:
        with connect(server.url) as connection:
            with contextlib.suppress(OSError):
                connection.sendall(data)
            response = read_response(connection)
            assert response.split()[1] in (b"400", b"403", b"413", b"431"), response
            assert json.loads(response.partition(b"\r\n\r\n")[2])["error"]["code"]
        asks_health(server.url, 1)
        wait_for(lambda: not server.server.server_state.tasks)
    assert "Traceback" not in caplog.text


def _slots_are_free(engine: FakeEngine, server: Listening) -> None:
    wait_for(lambda: engine.live == 0 and not server.server.server_state.tasks)


def test_slow_clients_hold_no_slot_and_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty of each kind: headers, bodies and readers that drip. Requests beside them take what they take alone."""
    monkeypatch.setattr("serving.api.responses.streaming.SEND_TIMEOUT", 3.0)
    engine = FakeEngine("x" * 240, slots=4)
    stream = {"messages": MESSAGES, "stream": True, "logprobs": True, "top_logprobs": 20}
    with listening(engine) as server, contextlib.ExitStack() as stack:
        slow: list[socket.socket] = []
        for index in range(180):
            connection = stack.enter_context(connect(server.url))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            slow.append(connection)
            if index % 3 == 0:
                connection.sendall(GET[:30])
            elif index % 3 == 1:
                connection.sendall(HEAD + b"Content-Length: 5000\r\n\r\n{")
            elif index < 60:  # readers of streams that never read
                connection.sendall(request(json.dumps(stream).encode()))
        took: list[float] = []
        for _ in range(12):
            started = time.monotonic()
            with connect(server.url) as honest:
                honest.sendall(request(json.dumps({"messages": MESSAGES, "max_tokens": 5}).encode()))
                assert read_response(honest).startswith(b"HTTP/1.1 200")
            took.append(time.monotonic() - started)
            for connection in slow[:120]:
                with contextlib.suppress(OSError):
                    connection.send(b"x")
        # Of the slow ones only the readers got to the engine, and their slots are free although they read nothing.
        wait_for(lambda: engine.live == 0)
        assert len(engine.submitted) <= 20 + 12
        assert sorted(took)[6] < 3, took
        stack.close()
        _slots_are_free(engine, server)


def test_slow_clients_a_body_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.api.requests.bodies.body_reading.BODY_TIMEOUT", 0.5)
    engine = FakeEngine()
    with listening(engine) as server, connect(server.url) as connection:
        connection.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        for _ in range(30):
            with contextlib.suppress(OSError):
                connection.send(b" ")
            time.sleep(0.05)
        response = read_response(connection)
        assert response.startswith(b"HTTP/1.1 408")
        assert b"body_timeout" in response
        assert server.server.host.bodies.taken == 0
    assert engine.submitted == []


def test_slow_clients_a_body_that_nobody_wants_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a request that is refused, or of one that needs none."""
    monkeypatch.setattr("serving.connections.HEADER_TIMEOUT", 1.0)
    monkeypatch.setattr("serving.connections.SETTLING", 0.1)
    heads = [
        b"POST /v1/requests/x/cancel HTTP/1.1\r\nHost: localhost\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /nope HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: evil.example\r\n",
    ]
    with listening() as server, contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connect(server.url)) for _ in heads]
        for connection, head in zip(connections, heads, strict=True):
            connection.sendall(head + b"Content-Length: 100000000\r\n\r\n")
            assert read_response(connection).split()[1] in (b"200", b"403", b"404")
        deadline = time.monotonic() + 15  # less than HEADER_TIMEOUT by itself
        while server.server.connections.open and time.monotonic() < deadline:
            for connection in connections:
                with contextlib.suppress(OSError):
                    connection.send(b"x" * 100)
            time.sleep(0.05)
        assert not server.server.connections.open


def test_slow_clients_a_stream_that_is_not_read_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.api.responses.streaming.SEND_TIMEOUT", 0.3)
    engine = FakeEngine("x" * 240)
    body = {"messages": MESSAGES, "stream": True, "logprobs": True, "top_logprobs": 20, "n": 8}
    with listening(engine) as server, connect(server.url) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.sendall(request(json.dumps(body).encode()))
        wait_for(lambda: engine.submitted)
        wait_for(lambda: not server.server.server_state.tasks and engine.live == 0, seconds=15)
        assert server.server.host.router.held == 0
