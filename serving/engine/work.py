"""The kinds of work that a request can ask the engine for, and what the engine has to know about each.

A kind says which chunks of the prompt run and makes the output that turns device results into events. Scheduler, rounds
and engine treat all kinds alike: a sequence runs its chunks, then as many decode steps as its `max_tokens`, and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mistral_jax.runtime.buckets import PrefillChunk
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.sample import Sampled
from mistral_jax.tokenizer.base import Tokenizer
from serving.engine.embedding import EmbeddingOutput
from serving.engine.messages import Event, Request, Work
from serving.engine.output import CompletionOutput, ScoreOutput
from serving.engine.scalings import ScalingsTrack


class Output(Protocol):
    """Turns the device results of one request into events. The last event has a `finish_reason`."""

    def push_prompt(self, results: np.ndarray) -> Event:
        """The event for the results of one prompt chunk: one row for each of its tokens, or what they are pooled
        to."""
        ...

    def push(self, sampled: Sampled, weights: np.ndarray | None = None) -> Event:
        """The event for a sampled token.

        Args:
          weights: float32 [M, A]: the adapter weights that predicted it, if they were read.
        """
        ...

    def end(self) -> Event:
        """The last event of a request that samples no token."""
        ...


class MakeOutput(Protocol):
    def __call__(
        self,
        request: Request,
        tokenizer: Tokenizer,
        *,
        eos_ids: Collection[int],
        max_tokens: int,
        scalings: ScalingsTrack | None,
    ) -> Output: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkKind:
    """One kind of work."""

    chunks: Callable[[Runner, Request, int], Iterator[PrefillChunk]]
    """The prompt chunks to run, from a token on."""
    shares: bool = False
    """Whether its prompts may share the cache with others, and begin with a later token."""
    output: MakeOutput


def _completion_chunks(runner: Runner, request: Request, start: int) -> Iterator[PrefillChunk]:
    return iter(()) if request.params.max_tokens == 0 else runner.chunks(len(request.prompt), start=start)


def _score_chunks(runner: Runner, request: Request, _start: int) -> Iterator[PrefillChunk]:
    return runner.chunks(len(request.prompt), score=True)


def _embedding_chunks(runner: Runner, request: Request, _start: int) -> Iterator[PrefillChunk]:
    return runner.chunks(len(request.prompt), embed=True)


KINDS: Mapping[Work, WorkKind] = {
    Work.GENERATE: WorkKind(chunks=_completion_chunks, output=CompletionOutput, shares=True),
    Work.SCORE: WorkKind(chunks=_score_chunks, output=ScoreOutput),
    Work.EMBED: WorkKind(chunks=_embedding_chunks, output=EmbeddingOutput),
}
"""Every kind of work that requests can ask for."""


def cache_key(request: Request, *, across_callers: bool) -> Hashable:
    """What the cache's content for a request depends on besides its tokens, and who may share it; None: nobody."""
    if not KINDS[request.work].shares or not request.uses_cache:
        return None
    choice = request.choice
    caller = 0 if across_callers else request.caller
    return caller, request.cache_salt, choice.xlora, choice.weights, request.adapters
