"""The server's own log, on standard error."""

from __future__ import annotations

import asyncio
import logging
from datetime import datetime


class _Formatter(logging.Formatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802
        """Local date and time, with the offset from UTC (ISO 8601)."""
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")


def configure_logging(level: str) -> None:
    """Log to standard error, one line per message: our own messages from `level` up, warnings of libraries."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("mistral_jax").setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING if level != "error" else logging.ERROR)
    logging.getLogger("uvicorn.error").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether to log a record from uvicorn: a cancelled request is not an application error, and no websocket library
    is needed."""
    kind = record.exc_info[0] if record.exc_info else None
    cancelled = kind is not None and issubclass(kind, asyncio.CancelledError)
    return not cancelled and not record.getMessage().startswith("No supported WebSocket library")
