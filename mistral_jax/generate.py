"""Generation without a server: many prompts over the slots of a runner, in one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from mistral_jax.answer import AnswerStream, Piece
from mistral_jax.runner import Runner, RunnerState
from mistral_jax.sampling import Features, Sampled, unpack
from mistral_jax.sampling_params import SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A sequence to continue."""

    tokens: tuple[int, ...]
    params: SamplingParams
    """With a seed."""
    answer: AnswerStream


@dataclass(slots=True, eq=False)
class _Running:
    """A prompt in a slot; compared by identity, for each token."""

    index: int
    prompt: Prompt
    slot: int
    held: int
    """Tokens in the cache once the dispatched steps have run."""


def generate(runner: Runner, state: RunnerState, prompts: Sequence[Prompt]) -> Iterator[tuple[int, Piece, Sampled]]:
    """Run all prompts to their ends; slots that become free take the next prompt.

    Each step is dispatched before the tokens of the one before are read, so the device does not wait for the host.

    Args:
      state: donated; of no use afterwards.
    Yields: (index of the prompt, piece of its answer, the token that gave it), as they come.
    """
    waiting = deque(enumerate(prompts))
    free = list(range(runner.slots))
    running: list[_Running] = []
    in_flight: tuple[list[_Running], jax.Array] | None = None
    while waiting or running or in_flight:
        while waiting and free:
            index, prompt = waiting.popleft()
            slot = free.pop(0)
            state = runner.admit(state, slot, prompt.tokens, prompt.params)
            for chunk in runner.chunks(len(prompt.tokens)):
                state, _ = runner.prefill(state, slot, prompt.tokens, chunk)
            running.append(_Running(index, prompt, slot, len(prompt.tokens) - 1))
        dispatched = None
        # A sequence may be one step ahead of what was read; it must not run out of its slot.
        ready = [r for r in running if r.held < runner.length]
        if ready:
            features = Features()
            for r in ready:
                features |= Features.of(r.prompt.params)
                r.held += 1
            state, packed = runner.decode(state, [r.slot for r in ready], features, longest=max(r.held for r in ready))
            dispatched = (ready, packed)
        if in_flight is not None:
            rows, packed = in_flight
            host = np.asarray(packed)
            for r in rows:
                if r not in running:
                    continue  # it ended with the step before
                sampled = unpack(host[r.slot], r.prompt.params.logprobs)
                piece = r.prompt.answer.push(sampled)
                if piece.finish_reason is not None:
                    running.remove(r)
                    free = sorted([*free, r.slot])
                yield r.index, piece, sampled
        in_flight = dispatched
