"""Runs the application under uvicorn: one process that listens at once, loads in the background, and stops cleanly.

/health reports the loading. The first signal lets running requests finish; the second ends them at once, which the exit
status shows.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn
from litestar import Litestar
from uvicorn.server import HANDLED_SIGNALS

from serving.api.access import is_loopback
from serving.api.log.log_file import LogFile
from serving.api.service.lifecycle import ServiceHost
from serving.app import create_app
from serving.connections import Connections
from serving.logs import configure_logging
from serving.settings.settings import Settings, SettingsError

logger = logging.getLogger("mistral_jax.server")

KEEP_ALIVE_CONNECTION = 75
"""Seconds that an idle connection stays open; longer than common client pools keep theirs."""

_UNINTERRUPTIBLE = ("build", "device", "compile")
"""Names of the threads that build the service, that drive the device and that compile programs behind."""

LOG_GRACE = 1.0
"""Seconds to finish writing `--log` lines after a second signal."""

RESERVED_FILES = 256
"""Open files reserved for other uses than connections: weights, logs, libraries."""

FAILURE_GRACE = 2.0
"""Seconds that /health reports a failure before the process exits."""


def run_server(settings: Settings) -> int:
    """Serve until a signal or a failure. Returns the exit code: 0 after a signal, 1 after a failure.

    If a second signal ends requests, the process exits with 128 plus the signal's number, as shells report it: 130 for
    Ctrl-C.

    Raises:
      SettingsError: the address is in use or cannot be listened on, or the log file cannot be written.
    """
    configure_logging(settings.log_level)
    try:
        if settings.log is not None:
            LogFile(settings.log).close()  # checked for writability before anything is loaded
        listener = listen(settings.host, settings.port)
    except OSError as error:
        raise SettingsError(str(error)) from error
    app = create_app(settings)
    server = Server(app, settings)
    _announce(settings, listener)
    asyncio.run(_serve(server, listener), loop_factory=server.config.get_loop_factory())
    code = 1 if server.host.failure else 0
    if any(thread.name in _UNINTERRUPTIBLE for thread in threading.enumerate()):
        # Such a thread may be inside a computation that must not overlap the interpreter's shutdown.
        _leave(code)
    return code


async def _serve(server: Server, listener: socket.socket) -> None:
    await server.serve(sockets=[listener])
    if server.force_exit:
        # Inside the event loop: closing the loop would cancel every request and log each as an application error.
        code = server.cut_off()
        if server.host.log_file is not None:
            server.host.log_file.close(LOG_GRACE)
        _leave(1 if server.host.failure else code)


def _leave(code: int) -> NoReturn:
    """End the process at once, whatever its threads do."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket.

    Raises:
      OSError: it cannot listen there; the message is one line that says what to do.
    """
    try:
        address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(address[0], socket.SOCK_STREAM)
        try:
            if os.name == "posix":
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address[4])
            listener.listen(2048)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(
                f"port {port} on {host} is in use; stop what uses it, or choose another with --port"
            ) from error
        reason = error.strerror or str(error)
        if error.errno == errno.EACCES:
            raise OSError(f"--port {port}: {reason}; ports below 1024 need privileges") from error
        raise OSError(f"--host {host}: cannot listen there: {reason}") from error
    return listener


def connection_limit(wanted: int) -> int:
    """The number of connections allowed: `wanted`, or fewer if the process may not open that many files. Raises the
    limit on open files where possible."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return wanted
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    needed = wanted + RESERVED_FILES
    if soft < needed and (hard == resource.RLIM_INFINITY or hard > soft):
        raised = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    limit = min(wanted, soft - min(RESERVED_FILES, soft // 2))
    if limit < wanted:
        logger.warning(
            "the process may open %d files, so there can be %d connections at a time (ulimit -n)", soft, limit
        )
    return limit


def _announce(settings: Settings, listener: socket.socket) -> None:
    port = listener.getsockname()[1]
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    logger.info("listening on http://%s:%d (docs at /docs); loading %s", host, port, settings.served_id)
    if not is_loopback(settings.host) and not settings.api_keys:
        logger.warning("everyone who can reach %s:%d can use this server; --api-key restricts it", host, port)


class Server(uvicorn.Server):
    """uvicorn's server; it also stops when the engine fails, and drains the engine while streams finish."""

    def __init__(self, app: Litestar, settings: Settings) -> None:
        self.connections = Connections(
            limit=connection_limit(settings.max_connections), idle_per_address=settings.max_idle_per_address
        )
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_CONNECTION,
                http=cast("Any", self.connections.protocol),
                ws="none",
                # The engine ends all requests after drain_timeout; the rest is for clients that do not read their last
                # bytes.
                timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
            )
        )
        self.host: ServiceHost = app.state.host
        self._settings = settings
        self._failed_at: float | None = None
        self._signal = signal.SIGINT

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        """Like uvicorn's, but a signal during shutdown does not kill the process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        for number in HANDLED_SIGNALS:
            signal.signal(number, self.handle_exit)
        # In a terminal, SIGHUP still means that the terminal was closed, and ends the process.
        if self._settings.log is not None and hasattr(signal, "SIGHUP") and not sys.stderr.isatty():
            signal.signal(signal.SIGHUP, self._reopen_log)
        try:
            yield
        finally:
            for number in HANDLED_SIGNALS:
                signal.signal(number, signal.SIG_IGN)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain on the first signal, stop at once on the second. Unlike uvicorn, do not re-raise the signal: it has
        been handled."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True
        self._signal = signal.Signals(sig)

    def _reopen_log(self, _signal: int, _frame: FrameType | None) -> None:
        if self.host.log_file is not None:
            self.host.log_file.reopen()

    def cut_off(self) -> int:
        """Abort all connections. Returns the exit status: 0 if no request was in progress."""
        requests = len(self.server_state.tasks)
        for connection in list(self.connections.open):
            connection.abort()
        if requests:
            logger.warning("stopped at once: %d requests were cut off", requests)
            return 128 + self._signal
        return 0

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second; True ends the server."""
        if self.host.failure is not None:
            now = asyncio.get_running_loop().time()
            self._failed_at = now if self._failed_at is None else self._failed_at
            if now - self._failed_at >= FAILURE_GRACE:
                self.should_exit = True
        if counter % 10 == 0:
            self.connections.sweep()
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the listener, let requests finish for `drain_timeout` seconds, end the rest."""
        self.host.refuse_new()
        status = self.host.status
        if status.running or status.waiting:
            logger.info(
                "stopping: waiting for %d answers, %g seconds at most (Ctrl-C, or another signal, stops at once)",
                status.running + status.waiting,
                self._settings.drain_timeout,
            )
        else:
            logger.info("stopping")
        draining = asyncio.create_task(self.host.drain(self._settings.drain_timeout))
        stopping = asyncio.create_task(super().shutdown(sockets=sockets))
        # Polled, not awaited: not all of uvicorn's own waits notice a second signal.
        while not stopping.done() and not self.force_exit:
            await asyncio.wait((stopping,), timeout=0.05)
        draining.cancel()
        if stopping.done():
            await stopping
