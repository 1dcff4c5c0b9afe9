"""The request log: one line on standard error for each request, and with `--log FILE` request and response as JSON.

The file gets two lines for each request, joined by `request_id`: {"type": "request", ...} when its body has arrived and
{"type": "response", ...} when the last byte is sent; a streamed response is logged assembled. The file's thread makes
and writes the lines (`serving.api.log.log_file`), so neither a long completion nor a slow disk blocks the event loop.
Headers are not logged: they carry keys.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
from litestar.types import ASGIApp, Message, Receive, Scope, Send

from serving.api.errors import InvalidRequestError
from serving.api.json_bounds import check_bounds
from serving.api.log.exchange import Exchange, exchange_of
from serving.api.log.log_file import LogFile
from serving.api.log.request_id import request_id_of

access_logger = logging.getLogger("mistral_jax.access")


class RequestLog:
    """The outermost middleware: sees every request and response, including errors."""

    def __init__(self, app: ASGIApp, *, quiet_paths: Collection[str] = ()) -> None:
        """Args:
        quiet_paths: requests to these are not in the file, and logged at debug level only.
        """
        self.app = app
        self._quiet_paths = frozenset(quiet_paths)
        self.file: LogFile | None = None
        """Set while the application runs and `--log` is given."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = exchange_of(scope)
        exchange.is_wanted = self.file is not None and scope["path"] not in self._quiet_paths
        body = bytearray()
        logged, sent = False, 0

        def log_request() -> None:
            nonlocal logged
            if self.file is not None and exchange.is_wanted and not logged:
                logged = True
                _log_request(self.file, scope, exchange)

        async def watched_receive() -> Any:
            if exchange.request is not None:
                log_request()
            return await receive()

        async def watched_send(message: Message) -> None:
            nonlocal sent
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                log_request()
            elif message["type"] == "http.response.body" and exchange.is_wanted:
                sent += len(message["body"])
                if exchange.response is None:
                    body.extend(message["body"][: MAX_RAW_RESPONSE - len(body)])
            await send(message)

        try:
            await self.app(scope, watched_receive, watched_send)
        finally:
            for call in exchange.at_end:
                call()
            log_request()
            self._log_response(scope, exchange, bytes(body), sent)

    def _log_response(self, scope: Scope, exchange: Exchange, body: bytes, sent: int) -> None:
        duration = time.monotonic() - exchange.started
        status = exchange.status if exchange.status is not None else 499
        quiet = scope["path"] in self._quiet_paths
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
        if self.file is None or not exchange.is_wanted:
            return
        entry: dict[str, Any] = {
            "type": "response",
            "time": _now(),
            "request_id": request_id,
            "status": status,
            "duration_s": round(duration, 6),
            "usage": usage or None,
            "error": exchange.error,
        }
        response = exchange.response

        def line() -> bytes:
            whole = response() if callable(response) else response
            return msgspec.json.encode({**entry, "body": _json_or_text(body or None) if whole is None else whole})

        self.file.write(line, LINE_SIZE + sent)


LINE_SIZE = 1024
"""Approximate bytes of a line without the body."""

MAX_RAW_RESPONSE = 65536
"""Bytes kept of a response that is not a completion (errors, lists, pages)."""


def _log_request(file: LogFile, scope: Scope, exchange: Exchange) -> None:
    client = scope.get("client")
    entry = {
        "type": "request",
        "time": _now(),
        "request_id": request_id_of(scope),
        "method": cast("str", scope.get("method", "")),
        "path": scope["path"],
        "client": client[0] if client else None,
    }
    body, exchange.request = exchange.request, None
    file.write(
        lambda: msgspec.json.encode({**entry, "body": _json_or_text(body)}), LINE_SIZE + (len(body) if body else 0)
    )


def _json_or_text(body: bytes | None) -> msgspec.Raw | str | None:
    """Valid JSON as it came, but on one line; anything else as text, truncated."""
    if body is None:
        return None
    try:
        check_bounds(body)
        body.decode("utf-8")  # checked here, because the next line does not
        return msgspec.Raw(msgspec.json.format(msgspec.json.decode(body, type=msgspec.Raw), indent=-1))
    except (InvalidRequestError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return body[:MAX_RAW_RESPONSE].decode("utf-8", errors="replace")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _one_line(text: str) -> str:
    return text[:200].encode("unicode_escape").decode("ascii")
