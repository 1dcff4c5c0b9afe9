"""Closes idle and slow connections, so that they do not keep others out.

uvicorn limits the time between two requests on a connection. This module limits the rest: the time for a request's
headers, and for a response that the client does not read; the number of connections, in total and idle per address; and
chunked bodies with chunks so small that parsing them delays other requests.

Each connection is uvicorn's own protocol in a wrapper that watches it. A sweep runs once a second; between sweeps, a
new connection beyond the limit replaces an idle one.
"""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import logging
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, cast

import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from serving.api.errors import ApiError, BodyTimeoutError, HeadersTooLargeError, InvalidRequestError

logger = logging.getLogger("mistral_jax.server")

HEADER_TIMEOUT = 20.0
"""Seconds from the first byte of a request, or from the connection's start, to the end of the headers."""

WRITE_TIMEOUT = 60.0
"""Seconds that a client may stop reading, and that a closing connection may take to be gone."""

SETTLING = 1.0
"""Seconds that a connection may be idle before it counts as idle: its request may be on the way."""

READ_SIZE = 16_384
"""Most bytes read from one connection before others are served."""

MAX_TINY_CHUNKS = 1_024
"""Most tiny chunks in a body. Each takes 20 microseconds to parse, whatever its size."""
_LINE = 64
"""A chunk has two line ends; it is tiny if fewer bytes than this lie between line ends."""
_PIECE = 1_024
"""Data with many line ends is parsed in pieces of this many bytes, with a check after each."""

_LOOK_EVERY = 0.02
"""Seconds until a new scan for connections to close, after one found only busy ones."""

_WARN_EVERY = 60.0


class Phase(enum.Enum):
    WAITING = "no request is in progress"
    UPLOADING = "a request's body is on the way"
    RESPONDING = "a whole request has arrived, and its response is not complete"


class Connections:
    """All connections of a server.

    Args:
      limit: most connections in total.
      idle_per_address: most idle connections per address; for IPv6, per /64.
    """

    def __init__(self, *, limit: int, idle_per_address: int) -> None:
        self.limit = limit
        self.idle_per_address = idle_per_address
        self.open: set[Connection] = set()
        self.buffer = bytearray(READ_SIZE)
        """Shared by all connections: each read is processed before the next one."""
        self._victims: deque[Connection] = deque()
        self._full_until = 0.0
        self._warned_at = -_WARN_EVERY

    def protocol(
        self, *, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None
    ) -> Any:
        """Make the protocol of a new connection; uvicorn calls this."""
        return Connection(self, lambda: _Protocol(config, server_state, app_state, _loop))

    def add(self, connection: Connection) -> bool:
        """Accept a connection. False: the limit is reached and no other connection can be closed."""
        if len(self.open) >= self.limit and not self._make_room():
            return False
        self.open.add(connection)
        return True

    def remove(self, connection: Connection) -> None:
        self.open.discard(connection)

    def sweep(self) -> None:
        """Close connections that take too long, or are beyond their address's limit of idle ones. Called about once a
        second."""
        now = time.monotonic()
        idle: dict[str, list[Connection]] = {}
        for connection in list(self.open):
            connection.check(now)
            if connection.phase is Phase.WAITING and now - connection.busy_at > SETTLING:
                idle.setdefault(connection.address, []).append(connection)
        for waiting in idle.values():
            if (excess := len(waiting) - self.idle_per_address) > 0:
                waiting.sort(key=lambda connection: connection.busy_at)
                for connection in waiting[:excess]:
                    connection.close()

    def _make_room(self) -> bool:
        """Close an idle connection, or if there is none, one whose request is still being uploaded."""
        now = time.monotonic()
        if now - self._warned_at > _WARN_EVERY:
            self._warned_at = now
            logger.warning(
                "there are %d connections, the most allowed (--max-connections): new ones replace idle ones",
                self.limit,
            )
        if not self._victims and now >= self._full_until:
            self._victims = self._candidates()
            if not self._victims:
                self._full_until = now + _LOOK_EVERY
        while self._victims:
            victim = self._victims.popleft()
            if victim in self.open and victim.phase is not Phase.RESPONDING:
                victim.abort()
                self.remove(victim)
                return True
        return False

    def _candidates(self) -> deque[Connection]:
        """The connections to close next: idle ones, those of the address with most of them first, then oldest first.
        If none is idle: those being uploaded. Returns half of them, so that the counts are soon refreshed."""
        waiting = [connection for connection in self.open if connection.phase is Phase.WAITING]
        if waiting:
            count = Counter(connection.address for connection in waiting)
            waiting.sort(key=lambda connection: (-count[connection.address], connection.busy_at))
        else:
            waiting = [connection for connection in self.open if connection.phase is Phase.UPLOADING]
            waiting.sort(key=lambda connection: connection.request_at)
        return deque(waiting[: (len(waiting) + 1) // 2])


class _Protocol(H11Protocol):
    """uvicorn's protocol, with errors in our shape."""

    refuse: Callable[[ApiError], None]

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP; uvicorn calls this while it handles h11's error."""
        error: ApiError = InvalidRequestError("this is not a valid HTTP request", code="invalid_http")
        if getattr(sys.exception(), "error_status_hint", 400) == HeadersTooLargeError.status:
            error = HeadersTooLargeError("the headers are longer than this server reads, 16 KiB")
        self.refuse(error)


class Connection(asyncio.BufferedProtocol):
    """One connection: passes everything to uvicorn's protocol, and records the times."""

    def __init__(self, connections: Connections, make_inner: Callable[[], _Protocol]) -> None:
        self.address = ""
        self.busy_at = self.request_at = time.monotonic()
        """When a request was last in progress (else: when the connection began), and when the last request began."""
        self._connections = connections
        self._make_inner = make_inner
        self._inner: _Protocol | None = None
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._headers_since: float | None = self.busy_at
        """When the headers in progress began; None: none are, and uvicorn's own keep-alive timeout applies."""
        self._stuck_since: float | None = None
        """When the client stopped reading."""
        self._closed_at: float | None = None
        self._cycle: object = None
        self._tiny_chunks = 0

    @property
    def phase(self) -> Phase:
        cycle = None if self._inner is None else self._inner.cycle
        if cycle is None or cycle.response_complete:  # pyright: ignore[reportUnnecessaryComparison]
            return Phase.WAITING
        return Phase.UPLOADING if cycle.more_body else Phase.RESPONDING

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.address = address_of(transport.get_extra_info("peername"))
        if not self._connections.add(self):
            self._transport.abort()
            return
        self._inner = self._make_inner()
        self._inner.refuse = self._refuse
        self._inner.connection_made(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.remove(self)
        if self._inner is not None:
            self._inner.connection_lost(exc)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._connections.buffer

    def buffer_updated(self, nbytes: int) -> None:
        data = bytes(self._connections.buffer[:nbytes])
        size = _PIECE if data.count(b"\r\n") > nbytes // _LINE else READ_SIZE
        for start in range(0, nbytes, size):
            self._take(data[start : start + size])

    def _take(self, data: bytes) -> None:
        if self._inner is None or self._transport.is_closing():
            return
        now = time.monotonic()
        self._inner.data_received(data)
        if self.phase is Phase.WAITING:
            self._headers_since = now if self._headers_since is None else self._headers_since
            return
        self._headers_since, self.busy_at = None, now
        if self._inner.cycle is not self._cycle:
            self._cycle, self.request_at, self._tiny_chunks = self._inner.cycle, now, 0
        if self.phase is Phase.UPLOADING and self._is_chunked():
            self._tiny_chunks += max(0, data.count(b"\r\n") - len(data) // _LINE) // 2
            if self._tiny_chunks > MAX_TINY_CHUNKS:
                message = f"the body comes in more than {MAX_TINY_CHUNKS} tiny chunks; send larger ones"
                self._refuse(InvalidRequestError(message, code="tiny_chunks"))

    def eof_received(self) -> bool | None:
        return None if self._inner is None else self._inner.eof_received()

    def pause_writing(self) -> None:
        self._stuck_since = time.monotonic()
        if self._inner is not None:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._stuck_since = None
        if self._inner is not None:
            self._inner.resume_writing()

    def check(self, now: float) -> None:
        """Close the connection if something takes too long."""
        phase = self.phase
        if phase is not Phase.WAITING:
            self.busy_at = now
        if self._transport.is_closing():
            self._closed_at = now if self._closed_at is None else self._closed_at
        for since in (self._stuck_since, self._closed_at):
            if since is not None and now - since > WRITE_TIMEOUT:
                self.abort()
                return
        if phase is Phase.WAITING and self._headers_since is not None and now - self._headers_since > HEADER_TIMEOUT:
            assert self._inner is not None
            begun, _ = self._inner.conn.trailing_data
            if not begun:
                self._transport.close()
                return
            message = f"the headers did not arrive within {HEADER_TIMEOUT:g} seconds"
            self._refuse(BodyTimeoutError(message, code="headers_timeout"))

    def close(self) -> None:
        """Close an idle connection."""
        self._transport.close()

    def abort(self) -> None:
        """Close the connection without sending buffered data."""
        self._transport.abort()

    def _is_chunked(self) -> bool:
        assert self._inner is not None
        return any(name == b"transfer-encoding" for name, _ in self._inner.cycle.scope["headers"])

    def _refuse(self, error: ApiError) -> None:
        """Send the error, if no response has been started, and close."""
        assert self._inner is not None
        started = self.phase is not Phase.WAITING and self._inner.cycle.response_started
        if not started and not self._transport.is_closing():
            body = msgspec.json.encode(error.body())
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\nContent-Type: application/json\r\n"
            head += f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            self._transport.write(head.encode("ascii") + body)
        self._transport.close()


def address_of(peer: Any) -> str:
    """The unit that counts as one address: an IPv4 address, or an IPv6 /64, which is what one customer gets. Empty for
    a Unix socket."""
    if not isinstance(peer, tuple) or not peer:
        return ""
    text = str(cast("tuple[object, ...]", peer)[0]).partition("%")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return text
    if isinstance(address, ipaddress.IPv4Address):
        return text
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))
