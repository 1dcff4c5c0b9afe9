"""The applications that generated requests are sent to, and what becomes of a request."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections import Counter
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

import serving.app
from mistral_jax.chat.output.formats import OutputFormat, reasoning_format, tool_format
from serving.api.service.service import Service
from serving.app import create_app
from serving.settings.settings import Settings
from tests.mistral_jax.chat.output.completions import MISTRAL, written
from tests.serving.fakes import CONTROL, FakeChat, FakeEngine, fake_service
from tests.serving.generated.cases import Case
from tests.serving.harness import in_process
from tests.serving.recorder import Recorder

MOST_SECONDS = 10.0
"""Seconds that a response may take. Most take milliseconds; grammars and templates have limits of their own."""
ALLOWED_ABOVE_499 = frozenset({501, 503})


@dataclass(slots=True)
class Server:
    """One application, as it runs."""

    client: httpx.AsyncClient
    recorder: Recorder


@dataclass(slots=True)
class Servers:
    """Some applications that share an event loop, which runs in a thread of its own."""

    loop: asyncio.AbstractEventLoop
    running: list[Server]
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter[tuple[str, int]])
    """Responses so far, by operation and status."""
    slowest: tuple[float, str] = (0.0, "")

    def send(self, case: Case) -> int:
        """Send a request and check its response. Returns the status.

        Raises:
          AssertionError: the response is a 5xx, or not as described, or takes too long.
        """
        server = self.running[case.server % len(self.running)]
        request = server.client.build_request(case.method, case.path, headers=case.headers, content=case.body)
        if not case.headers.get("Content-Type"):
            request.headers.pop("content-type", None)
        started = time.monotonic()
        sending = asyncio.run_coroutine_threadsafe(server.client.send(request), self.loop)
        try:
            response = sending.result(MOST_SECONDS)
        except TimeoutError as error:
            sending.cancel()
            raise AssertionError(f"no response after {MOST_SECONDS:g} s: {case!r}") from error
        self.slowest = max(self.slowest, (time.monotonic() - started, repr(case)[:300]))
        self.statuses[f"{case.method} {request.url.path}", response.status_code] += 1
        note = f"{case!r}: {response.status_code} {response.text[:500]}"
        assert response.status_code < 500 or response.status_code in ALLOWED_ABOVE_499, note
        try:
            server.recorder.check()
        except AssertionError as error:
            raise AssertionError(f"{error}\n{note}") from error
        return response.status_code

    def by_status(self) -> dict[int, int]:
        """Number of responses by status."""
        counts = Counter[int]()
        for (_, status), count in self.statuses.items():
            counts[status] += count
        return dict(sorted(counts.items()))


@contextlib.contextmanager
def serving_all(services: Sequence[tuple[Service, dict[str, Any]]]) -> Generator[Servers]:
    """Run an application for each service, with these settings."""
    started = threading.Event()
    found: list[Servers] = []
    failures: list[BaseException] = []
    stop = asyncio.Event()

    async def main() -> None:
        async with contextlib.AsyncExitStack() as stack:
            servers = []
            for service, settings in services:
                app = create_app(Settings(**settings), service=service)
                app.asgi_handler = recorder = Recorder(app.asgi_handler, serving.app.ENDPOINTS)
                await stack.enter_async_context(app.lifespan())
                client = await stack.enter_async_context(in_process(app))
                while (await client.get("/health")).status_code != 200:
                    await asyncio.sleep(0.01)
                servers.append(Server(client, recorder))
            found.append(Servers(asyncio.get_running_loop(), servers))
            started.set()
            await stop.wait()

    def run() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            failures.append(error)
        finally:
            started.set()

    thread = threading.Thread(target=run, name="generated requests")
    thread.start()
    started.wait()
    try:
        if failures:
            raise failures[0]
        yield found[0]
    finally:
        if found:
            found[0].loop.call_soon_threadsafe(stop.set)
        thread.join(30)
    assert not thread.is_alive()


def _spelt(items: Sequence[str | int]) -> str:
    return "".join(item if isinstance(item, str) else chr(CONTROL + item) for item in items)


REPLIES = (
    "Hello, wörld! 🙂",
    "",
    '{"a": 1}',
    _spelt(written("mistral-v3", [("get_weather", '{"a": 1}'), ("f", "{}")])),
    _spelt(written("mistral-v3", [("get_weather", '{"a": 1}')]))[:-9],
    '<think>so</think>text<tool_call>{"name": "f", "arguments": {}}</tool_call><tool_call>{"name',
    "<think>never ends [TOOL_CALLS] <tool_call>",
    "a\n\nb\r\ndata: x\n\n" * 9,
)
"""What the fake engine generates: texts, calls of tools, and beginnings of them."""


def fake_services() -> list[tuple[Service, dict[str, Any]]]:
    """Services with fake engines, in different settings."""
    replies = itertools.cycle(REPLIES)

    def engine() -> FakeEngine:
        return FakeEngine(lambda _request: next(replies))

    think = reasoning_format("<think>", "</think>", {})
    hermes = FakeChat(OutputFormat(tools=tool_format("hermes", {}), reasoning=think), variables=("enable_thinking",))
    mistral = FakeChat(OutputFormat(tools=tool_format("mistral-v3", MISTRAL)), variables=("reasoning_effort",))
    plain = FakeChat(knows_tools=False)
    return [
        (fake_service(engine(), chat=mistral), {}),
        (
            fake_service(engine(), chat=hermes),
            {
                "slots_endpoint": True,
                "tokenizer_info_endpoint": True,
                "truncate_sequence": True,
                "api_keys": ("key",),
                "aliases": ("*",),
            },
        ),
        (fake_service(engine(), chat=plain), {"strict_fields": True, "max_body_bytes": 20_000, "max_seqs": 2}),
        (fake_service(engine(), chat=False), {"allowed_origins": ("*",), "max_tokens": 3, "max_queue": 4}),
    ]
