"""One streamed completion, as a client sees it."""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx2

from serving.load.workload import Planned

NO_TEXT = "a completion without text"


@dataclass(kw_only=True)
class Outcome:
    """What came of one request. Times are of `time.perf_counter`, in seconds."""

    started: float
    arrivals: list[float] = field(default_factory=list[float])
    """When each part of the text came."""
    ended: float = 0.0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt, those that the server did not run, as it says."""
    completion_tokens: int = 0
    error: str | None = None
    """What went wrong, numbers replaced by N, so that failures of a kind read alike; None: nothing."""

    @property
    def first_token_seconds(self) -> float:
        return self.arrivals[0] - self.started

    @property
    def seconds(self) -> float:
        return self.ended - self.started

    @property
    def gaps(self) -> list[float]:
        """Seconds between parts of the text that follow one another."""
        return [later - earlier for earlier, later in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def seconds_per_token(self) -> float | None:
        """After the first token; None: there are no others."""
        if self.completion_tokens < 2 or len(self.arrivals) < 2:
            return None
        return (self.arrivals[-1] - self.arrivals[0]) / (self.completion_tokens - 1)


class Target:
    """A server, and how it is asked.

    Args:
      url: with or without `/v1` at its end.
      model: name for requests; None: the first that the server lists.
      key: sent as a bearer token.
      timeout: seconds without any sign of life after which a request has failed.
      extensions: fields that are not OpenAI's: `ignore_eos`, for completions of the length that is asked for.
    """

    def __init__(
        self, url: str, *, model: str | None, key: str | None, timeout: float, extensions: bool, connections: int
    ) -> None:
        self.url = url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.extensions = extensions
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=connections)
        # Not through a proxy: it would be part of what is measured.
        self._client = httpx2.AsyncClient(timeout=timeout, limits=limits, headers=headers, trust_env=False)

    async def aclose(self) -> None:
        await self._client.aclose()

    async def find_model(self) -> str:
        """The model's name for requests.

        Raises:
          ValueError: the server cannot be reached, or lists no model.
        """
        if self.model is None:
            try:
                response = await self._client.get(f"{self.url}/v1/models")
                response.raise_for_status()
                self.model = str(response.json()["data"][0]["id"])
            except (httpx2.HTTPError, httpx2.InvalidURL) as error:
                raise ValueError(f"{self.url}/v1/models: {_shown(error)}; is a server running there?") from error
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise ValueError(f"{self.url}/v1/models lists no model; name one with --served-model") from error
        return self.model

    async def complete(self, planned: Planned) -> Outcome:
        """Run one request. Never raises for what the server does: see `Outcome.error`."""
        body: dict[str, Any] = {
            "model": self.model,
            "prompt": planned.prompt,
            "max_tokens": planned.answer_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.extensions:
            body["ignore_eos"] = True
        outcome = Outcome(started=time.perf_counter())
        try:
            async with self._client.stream("POST", f"{self.url}/v1/completions", json=body) as response:
                if response.status_code != 200:
                    outcome.error = _refusal(response.status_code, await response.aread())
                else:
                    await _read(response, outcome)
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            outcome.error = _shown(error)
        outcome.ended = time.perf_counter()
        if outcome.error is None and not outcome.arrivals:
            outcome.error = NO_TEXT
        return outcome


async def _read(response: httpx2.Response, outcome: Outcome) -> None:
    finished = False
    async for event in _events(response):
        if event == "[DONE]":
            finished = True
            continue
        try:
            chunk = json.loads(event)
        except ValueError:
            outcome.error = "an event that is no JSON"
            return
        if "error" in chunk:
            outcome.error = f"an error in the stream: {_without_numbers(_message(chunk))}"
            return
        if any(choice.get("text") for choice in chunk.get("choices") or ()):
            outcome.arrivals.append(time.perf_counter())
        if usage := chunk.get("usage"):
            outcome.prompt_tokens = usage.get("prompt_tokens") or 0
            outcome.completion_tokens = usage.get("completion_tokens") or 0
            outcome.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    if not finished:
        outcome.error = "the stream ended before [DONE]"
    # Servers that do not count send about one token with each part.
    outcome.completion_tokens = outcome.completion_tokens or len(outcome.arrivals)


async def _events(response: httpx2.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data:"):
            yield line.removeprefix("data:").strip()


def _refusal(status: int, body: bytes) -> str:
    try:
        message = _message(json.loads(body))
    except ValueError:
        message = body[:100].decode(errors="replace")
    return f"HTTP {status}: {_without_numbers(message)}" if message else f"HTTP {status}"


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    found = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(found or "").split())[:160]


def _without_numbers(text: str) -> str:
    return re.sub(r"\d+", "N", text)


def _shown(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
