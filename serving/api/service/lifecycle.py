"""The lifecycle of the served model: built and loaded in the background, watched, drained at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable

import anyio.to_thread

from serving.api.errors import UnavailableError, without_paths
from serving.api.log.log_file import LogFile
from serving.api.service.body_budget import BodyBudget
from serving.api.service.callers import FairLimiter
from serving.api.service.generation import EventRouter
from serving.api.service.live_calls import LiveCalls
from serving.api.service.metrics import Metrics
from serving.api.service.service import Service
from serving.engine.messages import EngineState, EngineStatus
from serving.settings.settings import Settings

logger = logging.getLogger("mistral_jax.server")

WATCH_INTERVAL = 0.1
RETRY_AFTER_LOADING = 5
"""Retry-After in seconds while the model is not ready."""


class ServiceHost:
    """Holds the service while it is built, loaded, ready and drained. Everything but the build runs on the event
    loop."""

    def __init__(self, settings: Settings, build: Callable[[Settings], Service]) -> None:
        self.settings = settings
        self.live_calls = LiveCalls()
        self.encoding = FairLimiter(2)
        """Prompts encoded at the same time; more would starve the engine's thread of the interpreter lock."""
        self.rendering = FairLimiter(4)
        """Chats rendered at the same time, in processes."""
        self.decoding = FairLimiter(1)
        """Large bodies decoded at the same time; decoding holds the interpreter lock, so more would not be faster."""
        self.compiling = FairLimiter(4)
        """Requests whose grammars are compiled at the same time."""
        self.bodies = BodyBudget(settings.max_body_bytes)
        self.changing_adapters = asyncio.Lock()
        """Held while adapters are loaded or unloaded."""
        self.log_file: LogFile | None = None
        """The file of `--log`, while the application runs."""
        self.metrics = Metrics(
            lambda: self.status,
            lambda: self._service,
            lambda: self.log_file.lost if self.log_file else None,
            room_for_adapters=settings.room_for_loras,
        )
        self.router = EventRouter(self.metrics.requests)
        self.failure: str | None = None
        """Why the server failed; None: it has not. The code that runs the process then ends it."""
        self._build = build
        self._service: Service | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._stopping = False

    @property
    def status(self) -> EngineStatus:
        """The engine's status, or a substitute before there is an engine and after a failure."""
        if self.failure is not None:
            return EngineStatus(state=EngineState.FAILED, detail=self.failure)
        if self._service is None:
            return EngineStatus(state=EngineState.LOADING, detail="starting")
        status = self._service.engine.status
        if self._stopping and status.state is EngineState.READY:
            return EngineStatus(state=EngineState.DRAINING, running=status.running, waiting=status.waiting)
        return status

    @property
    def service(self) -> Service:
        """The service, ready to take requests.

        Raises:
          UnavailableError: it is not ready yet, or no longer.
        """
        status = self.status
        if self._service is not None and status.state is EngineState.READY:
            return self._service
        raise unavailable(status)

    @property
    def loaded_service(self) -> Service:
        """The service once it is built, whether or not the engine is ready.

        Raises:
          UnavailableError: it is not built yet.
        """
        if self._service is None:
            raise unavailable(self.status)
        return self._service

    def start(self) -> None:
        """Begin building and loading, and return at once."""
        loop = asyncio.get_running_loop()
        self.router.attach(loop)
        # Not a pool thread: the interpreter would wait for it at exit, and a build cannot be interrupted.
        threading.Thread(target=self._build_and_start, args=(loop,), name="build", daemon=True).start()
        self._watcher = loop.create_task(self._watch())

    def _build_and_start(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            service = self._build(self.settings)
            service.engine.start()
        except BaseException as error:
            logger.debug("building the service failed", exc_info=error)
            message = " ".join(str(error).split()) or type(error).__name__
            if not isinstance(error, ValueError | OSError | RuntimeError):
                message = f"{type(error).__name__}: {message}"
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._fail, f"the model could not be loaded: {message}")
        else:
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._built, service)

    def _built(self, service: Service) -> None:
        self._service = service

    def _fail(self, reason: str) -> None:
        if self.failure is None:
            self.failure = reason
            logger.error("%s", reason)

    async def _watch(self) -> None:
        """Log changes of state, and detect a failure of the engine."""
        logged: EngineState | None = None
        started = time.monotonic()
        while True:
            status = self.status
            if status.state is not logged:
                logged = status.state
                if logged is EngineState.READY:
                    seconds = time.monotonic() - started
                    names = [model.id for model in self.loaded_service.models.listed]
                    others = f" (and {len(names) - 1} more: GET /v1/models)" if names[1:] else ""
                    logger.info("ready: %s takes requests%s, after %.1f s", names[0], others, seconds)
                else:
                    logger.debug("%s%s", logged, f": {status.detail}" if status.detail else "")
            if status.state is EngineState.FAILED:
                self._fail(status.detail or "the engine failed")
                # The engine ends its live requests itself if it still can; this ends the rest.
                await asyncio.sleep(1)
                self.router.fail_all("the engine failed")
                return
            await asyncio.sleep(WATCH_INTERVAL)

    def refuse_new(self) -> None:
        """Refuse new requests from now on."""
        self._stopping = True

    async def drain(self, timeout: float) -> None:
        """Refuse new requests and give the live ones `timeout` seconds to finish; then the engine stops."""
        self._stopping = True
        # A load cannot be interrupted and has nothing to drain: the process just exits.
        loading = self._service is None or self._service.engine.status.state in (
            EngineState.LOADING,
            EngineState.WARMING_UP,
        )
        if self._service is not None and not loading:
            await anyio.to_thread.run_sync(self._service.engine.drain, timeout, abandon_on_cancel=True)

    async def stop(self) -> None:
        """Drain and stop watching."""
        await self.drain(self.settings.drain_timeout)
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher


def unavailable(status: EngineStatus) -> UnavailableError:
    """The error for a request while the engine is in this state."""
    match status.state:
        case EngineState.LOADING | EngineState.WARMING_UP:
            percent = "" if status.progress is None else f", {status.progress:.0%}"
            detail = f" ({without_paths(status.detail)}{percent})" if status.detail or percent else ""
            message = f"the model is {status.state}{detail}; try again in a moment"
        case EngineState.DRAINING | EngineState.STOPPED:
            message = "the server is stopping and takes no new requests"
        case EngineState.FAILED:
            message = "the engine failed; the server's log says why"
        case EngineState.READY:
            message = "the server is not ready"
    headers = {} if status.state is EngineState.FAILED else {"Retry-After": str(RETRY_AFTER_LOADING)}
    return UnavailableError(message, code=status.state.name.lower(), headers=headers)
