"""Generation without a server: many prompts over the slots of a runner, in one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.grammar.constraint import Constraint, ConstraintError
from mistral_jax.runtime.calls import RunnerState
from mistral_jax.runtime.decode_loop import DecodeLoop
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.params import SamplingParams, completion_limit
from mistral_jax.runtime.sampling.sample import Sampled
from mistral_jax.text.completion import CompletionStream, Piece


@dataclass(frozen=True, kw_only=True, slots=True)
class TextRequest:
    """A sequence to continue."""

    tokens: tuple[int, ...]
    params: SamplingParams
    """With a seed."""
    completion: CompletionStream
    choice: AdapterChoice = BASE
    """Its adapters."""
    keep_weights: bool = False
    """Whether to return the adapter weights of X-LoRA."""
    constraint: Constraint | None = None
    """What the completion must match; of this request alone."""


class Generated(NamedTuple):
    """A token of a completion."""

    request: int
    """Index of the request."""
    piece: Piece
    sampled: Sampled
    weights: np.ndarray | None
    """float32 [M, A]: the adapter weights that predicted the token, if requested and from the X-LoRA classifier; None
    after they were frozen."""


@dataclass(slots=True, eq=False)
class _Running:
    """A request in a slot. Compared by identity, as it is compared for each token."""

    index: int
    request: TextRequest
    slot: int
    most: int
    """Most tokens to generate."""
    steps: int = 0
    ended: bool = False

    @property
    def prompt(self) -> tuple[int, ...]:
        return self.request.tokens

    @property
    def params(self) -> SamplingParams:
        return self.request.params

    @property
    def choice(self) -> AdapterChoice:
        return self.request.choice

    @property
    def constraint(self) -> Constraint | None:
        return self.request.constraint

    @property
    def wants_weights(self) -> bool:
        return self.request.keep_weights

    @property
    def room(self) -> int:
        return self.most - self.steps

    @property
    def tokens_held(self) -> int:
        return len(self.prompt) - 1 + self.steps


def generate(runner: Runner, state: RunnerState, requests: Sequence[TextRequest]) -> Iterator[Generated]:
    """Run all requests to completion; freed slots take the next request.

    Args:
      state: donated; must not be used afterwards.
    Yields: tokens as they are generated, interleaved over all requests.
    """
    loop = DecodeLoop[_Running](runner, state)
    waiting = deque(enumerate(requests))
    free = list(range(runner.slots))
    running: list[_Running] = []
    while waiting or running or loop.is_pending:
        prefills = []
        while waiting and free:
            index, request = waiting.popleft()
            limit = completion_limit(request.params.max_tokens, prompt_tokens=len(request.tokens), length=runner.length)
            sequence = _Running(index, request, free.pop(0), limit)
            loop.admit(sequence)
            prefills += [(sequence, chunk) for chunk in runner.chunks(len(request.tokens))]
            running.append(sequence)
        # A sequence may be one step ahead of the tokens read; it must not exceed its limit.
        ready = [sequence for sequence in running if sequence.room > 0]
        for sequence in ready:
            sequence.steps += 1
        results = loop.step(prefills, ready)
        for sequence, message in results.failures:
            raise ConstraintError(f"prompt {sequence.index}: {message}")
        for sequence, sampled, weights in results.tokens:
            if sequence.ended:
                continue  # it ended in the previous step
            piece = sequence.request.completion.push(sampled)
            if piece.finish_reason is not None:
                sequence.ended = True
                running.remove(sequence)
                loop.forget(sequence)
                free = sorted([*free, sequence.slot])
            yield Generated(sequence.index, piece, sampled, weights if sequence.wants_weights else None)
