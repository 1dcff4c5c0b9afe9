"""Runs the application for a test: in this process without sockets, or on a real port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from typing import Any

import httpx
from litestar import Litestar

import serving.app
from serving.api.errors import UnavailableError
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service
from serving.app import create_app
from serving.engine.messages import Engine, EngineState
from serving.server import Server, listen
from serving.settings.settings import Settings
from tests.serving.fakes import FakeEngine, fake_service
from tests.serving.recorder import Recorder

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
URL = "http://localhost:1234"
"""To put before a path that begins with two slashes, which the client would take for a host."""
MESSAGES = [{"role": "user", "content": "hi"}]


@contextlib.asynccontextmanager
async def running(
    engine: FakeEngine | None = None, *, service: Service | None = None, **settings: Any
) -> AsyncGenerator[httpx.AsyncClient]:
    """A client of the application, which runs in this event loop."""
    app = create_app(Settings(**settings), service=service or fake_service(engine))
    with recorded(app):
        async with app.lifespan(), in_process(app) as client:
            while app.state.host.status.detail == "starting":
                await asyncio.sleep(0.001)
            yield client


@contextlib.contextmanager
def recorded(app: Litestar) -> Generator[None]:
    """Compares all responses of an application with the OpenAPI document.

    Raises:
      AssertionError: one differs; raised at the end.
    """
    app.asgi_handler = recorder = Recorder(app.asgi_handler, serving.app.ENDPOINTS)
    yield
    recorder.check()


def in_process(app: Litestar) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app)  # type: ignore[arg-type]
    # For bodies that a test writes itself; what sends no JSON is refused.
    headers = {"Content-Type": "application/json"}
    return httpx.AsyncClient(transport=transport, base_url=URL, headers=headers)


@dataclass
class Listening:
    url: str
    server: Server
    app: Litestar


@contextlib.contextmanager
def listening(
    engine: FakeEngine | None = None, *, service: Service | None = None, **settings: Any
) -> Generator[Listening]:
    """The application under uvicorn on a free port, in a thread."""
    chosen = Settings(port=0, **settings)
    app = create_app(chosen, service=service or fake_service(engine))
    server = Server(app, chosen)
    listener = listen(chosen.host, chosen.port)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    with recorded(app):
        thread.start()
        # It listens before the service is there, and refuses requests until then.
        wait_for(lambda: server.started and _is_built(server.host))
        try:
            yield Listening(url, server, app)
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def _is_built(host: ServiceHost) -> bool:
    try:
        return host.loaded_service is not None
    except UnavailableError:
        return False


def wait_for(condition: Callable[[], object], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


def wait_until_ready(engine: Engine) -> None:
    """Until it takes requests. A cold compilation on a busy machine takes minutes."""
    wait_for(lambda: engine.status.state is EngineState.READY, 500)


def events_of(body: str) -> list[Any]:
    """The `data:` payloads of a stream, which must end with [DONE]."""
    blocks = body.split("\n\n")
    assert blocks.pop() == ""
    assert blocks.pop() == "data: [DONE]"
    payloads = [block for block in blocks if not block.startswith(":")]
    assert all(payload.startswith("data: ") and "\n" not in payload for payload in payloads)
    return [json.loads(payload.removeprefix("data: ")) for payload in payloads]


def named_events_of(body: str) -> list[Any]:
    """The payloads of a stream whose events have names, which are the payloads' types."""
    blocks = body.split("\n\n")
    assert blocks.pop() == ""
    payloads: list[Any] = []
    for block in blocks:
        if block.startswith(":"):
            continue
        name, data = block.split("\n")
        payloads.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {payloads[-1]['type']}"
    return payloads


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The `usage` of a response."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
