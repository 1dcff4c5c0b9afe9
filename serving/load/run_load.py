"""Sends planned requests: in a closed loop, by so many clients one after another, or in an open loop at a rate."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from serving.load.client import NO_TEXT, Outcome, Target
from serving.load.workload import Planned, TokensOfWords, text_of

_WORDS_TO_COUNT = (250, 50, 10)
"""Of the text that is counted; the next one if a model's context is too small for it."""

Done = Callable[[Outcome], None]
"""Called with each outcome."""


async def tokens_of_words(target: Target) -> TokensOfWords:
    """Ask the server how many tokens texts have.

    Raises:
      ValueError: it fails, or does not say.
    """
    error = None
    for most in _WORDS_TO_COUNT:
        counts: dict[int, int] = {}
        for words in (most, most // 5):
            outcome = await target.complete(Planned(text_of(words, random.Random(words)), 1))
            # One token may be no text yet.
            if outcome.error not in (None, NO_TEXT):
                error = outcome.error
                break
            if not outcome.prompt_tokens:
                raise ValueError(f"{target.url} does not say how many tokens a prompt has (usage in the last chunk)")
            counts[words] = outcome.prompt_tokens
        else:
            return TokensOfWords.of(counts)
    raise ValueError(f"{target.url}/v1/completions: {error}")


async def closed_loop(target: Target, planned: Sequence[Planned], clients: int, done: Done) -> float:
    """`clients` clients, each sending its next request when it has the answer to the one before. Seconds taken."""
    waiting = iter(planned)

    async def client() -> None:
        for request in waiting:
            done(await target.complete(request))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(min(clients, len(planned)))))
    return time.perf_counter() - started


async def open_loop(target: Target, planned: Sequence[Planned], rate: float, seed: int, done: Done) -> float:
    """Requests begin at random times, `rate` of them in a second on average (a Poisson process), whether those before
    have ended or not. Seconds taken."""
    rng = random.Random(seed)
    started = time.perf_counter()
    due = 0.0

    async def one(request: Planned) -> None:
        done(await target.complete(request))

    async with asyncio.TaskGroup() as group:
        for request in planned:
            await asyncio.sleep(max(0.0, started + due - time.perf_counter()))
            group.create_task(one(request))
            due += rng.expovariate(rate)
    return time.perf_counter() - started
