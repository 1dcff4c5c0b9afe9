"""Encodes long prompts in time slices, so that other requests get a turn in between."""

from __future__ import annotations

import time
from collections.abc import Generator

import anyio
import anyio.to_thread

from mistral_jax.chat.encoding import PromptPieces
from serving.api.errors import ContextLengthError

SLICE = 0.05
"""Seconds of a time slice. One piece of a text takes about ten milliseconds."""


async def in_turns[T](work: Generator[None, None, T], limiter: anyio.CapacityLimiter) -> T:
    """Run a generator to its end in worker threads and return its result.

    Args:
      work: yields wherever others may have a turn.
      limiter: bounds the concurrency; waiting is first come, first served.
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
    """Collect all tokens of a prompt. Yields between pieces.

    Args:
      most: most tokens that it may have; None: any number.
      param: the field that errors name.

    Raises:
      ContextLengthError: it has more than `most`; raised before encoding if its length alone shows it, else as soon as
        that many are encoded.
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
