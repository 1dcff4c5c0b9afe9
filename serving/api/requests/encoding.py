"""Long prompts are encoded a slice of time at a time: between two slices whoever waits for a place gets one."""

from __future__ import annotations

import time
from collections.abc import Generator

import anyio
import anyio.to_thread

from mistral_jax.chat.encoding import PromptPieces
from serving.api.errors import ContextLengthError

SLICE = 0.05
"""Seconds after which a place is passed on. One piece of a text takes about ten milliseconds."""


async def in_turns[T](work: Generator[None, None, T], limiter: anyio.CapacityLimiter) -> T:
    """Runs a generator to its end in worker threads and returns what it returns.

    Args:
      work: yields wherever others may have a turn.
      limiter: of the places; waiting for one is first come, first served.
    """
    while True:
        ended = await anyio.to_thread.run_sync(_slice, work, limiter=limiter)
        if ended is not None:
            return ended[0]


def _slice[T](work: Generator[None, None, T]) -> tuple[T] | None:
    until = time.monotonic() + SLICE
    while True:
        try:
            next(work)
        except StopIteration as stop:
            return (stop.value,)
        if time.monotonic() >= until:
            return None


def gather(prompt: PromptPieces, *, most: int | None, param: str) -> Generator[None, None, list[int]]:
    """All tokens of a prompt. Yields between pieces.

    Args:
      most: tokens that it may have; None: any number.
      param: the field that errors name.

    Raises:
      ContextLengthError: it has more than `most`: before anything is encoded where its length alone says so, else as
        soon as that many are.
      ValueError: it cannot be encoded.
    """
    tokens: list[int] = []
    if most is not None and prompt.least > most:
        raise ContextLengthError(param=param, prompt_tokens=prompt.least, context=most, at_least=True)
    for piece in prompt.pieces:
        tokens += piece
        if most is not None and len(tokens) > most:
            raise ContextLengthError(param=param, prompt_tokens=len(tokens), context=most, at_least=True)
        yield
    return tokens
