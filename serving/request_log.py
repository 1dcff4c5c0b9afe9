"""What is told of every request: one line on standard error, and with `--log FILE` the whole exchange as JSON lines.

The file gets two lines for each request, joined by `request_id`: {"type": "request", ...} when its body has arrived and
{"type": "response", ...} when the last byte is sent; of a stream, the response is the assembled answer. A thread of
its own writes, so a slow disk never holds up the event loop. Headers are not written: they carry keys.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO, cast

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from serving.request_id import request_id_of
from serving.schemas import Usage

logger = logging.getLogger("mistral_jax.server")
access_logger = logging.getLogger("mistral_jax.access")

QUIET_PATHS = frozenset({"/health", "/metrics"})
"""Asked every few seconds by whoever watches a server: not in the file, and told at debug level only."""


@dataclass(slots=True)
class Exchange:
    """One request and its response, filled in by whoever knows the parts."""

    request: bytes | None = None
    """The body as it came."""
    response: Any = None
    """The response as a Struct; of a stream, what assembles the answer, which is not done unless the file wants it."""
    usage: Usage | None = None
    error: str | None = None
    """What went wrong on our side, before the response had begun or after."""
    status: int | None = None
    started: float = field(default_factory=time.monotonic)


def exchange_of(scope: Scope) -> Exchange:
    """The record of this request; the first call makes it."""
    state = scope.setdefault("state", {})
    if "exchange" not in state:
        state["exchange"] = Exchange()
    return cast("Exchange", state["exchange"])


class LogFile:
    """Appends JSON lines to a file from a thread of its own."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
          OSError: it cannot be opened; the message is one line that names it.
        """
        try:
            self._file: TextIO = path.open("a", encoding="utf-8")
        except OSError as error:
            raise OSError(f"--log {path}: cannot write there: {error.strerror or error}") from error
        self._path = path
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._lost = 0
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def write(self, entry: dict[str, Any]) -> None:
        """Queue one line."""
        self._lines.put(msgspec.json.encode(entry))

    def close(self) -> None:
        """Write what is queued, then close the file."""
        self._lines.put(None)
        self._thread.join(timeout=5)

    def _run(self) -> None:
        while (line := self._lines.get()) is not None:
            try:
                self._file.write(line.decode("utf-8") + "\n")
                if self._lines.empty():
                    self._file.flush()
            except OSError as error:
                self._lost += 1
                if self._lost == 1:
                    logger.error(
                        "--log %s: cannot write: %s; lines are being lost", self._path, error.strerror or error
                    )
        try:
            self._file.close()
        except OSError as error:
            logger.error("--log %s: cannot write: %s", self._path, error.strerror or error)


class RequestLog:
    """The outermost layer around the application: sees every request and response, errors and refusals included."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.file: LogFile | None = None
        """Set while the application runs and `--log` is given."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        body = bytearray()
        told = False

        def tell_request() -> None:
            nonlocal told
            if self.file is not None and not told and scope["path"] not in QUIET_PATHS:
                told = True
                self.file.write(self._request_entry(scope, exchange))

        async def watched_receive() -> Any:
            if exchange.request is not None:
                tell_request()
            return await receive()

        async def watched_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                tell_request()
            elif message["type"] == "http.response.body" and exchange.response is None and self.file is not None:
                body.extend(message["body"][: MAX_RAW_RESPONSE - len(body)])
            await send(message)

        try:
            await self.app(scope, watched_receive, watched_send)
        finally:
            tell_request()
            self._tell_response(scope, exchange, bytes(body))

    def _request_entry(self, scope: Scope, exchange: Exchange) -> dict[str, Any]:
        client = scope.get("client")
        return {
            "type": "request",
            "time": _now(),
            "request_id": request_id_of(scope),
            "method": cast("str", scope.get("method", "")),
            "path": scope["path"],
            "client": client[0] if client else None,
            "body": _json_or_text(exchange.request),
        }

    def _tell_response(self, scope: Scope, exchange: Exchange, body: bytes) -> None:
        duration = time.monotonic() - exchange.started
        status = exchange.status if exchange.status is not None else 499
        quiet = scope["path"] in QUIET_PATHS
        request_id = request_id_of(scope)
        usage = exchange.usage
        tokens = f" {usage.prompt_tokens}+{usage.completion_tokens} tokens" if usage else ""
        problem = f" ({exchange.error})" if exchange.error else ""
        access_logger.log(
            logging.DEBUG if quiet else logging.INFO,
            "%s %s %d %.3fs%s%s id=%s",
            scope.get("method"),
            _one_line(scope["path"]),
            status,
            duration,
            tokens,
            problem,
            request_id,
        )
        if self.file is not None and not quiet:
            response = exchange.response() if callable(exchange.response) else exchange.response
            self.file.write(
                {
                    "type": "response",
                    "time": _now(),
                    "request_id": request_id,
                    "status": status,
                    "duration_s": round(duration, 6),
                    "usage": usage or None,
                    "error": exchange.error,
                    "body": response if response is not None else _json_or_text(body or None),
                }
            )


MAX_RAW_RESPONSE = 65536
"""Bytes kept of a response that is not an answer (errors, lists, pages)."""


def _json_or_text(body: bytes | None) -> Any:
    """JSON as it came, byte for byte; anything else as text."""
    if body is None:
        return None
    try:
        return msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:MAX_RAW_RESPONSE].decode("utf-8", errors="replace")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    return text[:200].encode("unicode_escape").decode("ascii")
