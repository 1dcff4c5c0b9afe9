"""Generation without a server: many prompts over the slots of a runner, in one thread."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mistral_jax.adapters.choice import BASE, AdapterChoice
from mistral_jax.runtime.ahead_policy import AheadPolicy
from mistral_jax.runtime.runner import Runner, RunnerState, Stepped
from mistral_jax.runtime.sampling import Features, Sampled, unpack
from mistral_jax.runtime.sampling_params import SamplingParams
from mistral_jax.text.answer import AnswerStream, Piece


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """A sequence to continue."""

    tokens: tuple[int, ...]
    params: SamplingParams
    """With a seed."""
    answer: AnswerStream
    choice: AdapterChoice = BASE
    """Which adapters it uses."""
    keep_weights: bool = False
    """Whether the weights that X-LoRA gave the adapters are wanted."""


class Generated(NamedTuple):
    """A token of an answer."""

    prompt: int
    """Its place among the prompts."""
    piece: Piece
    sampled: Sampled
    weights: np.ndarray | None
    """float32 [M, A]: the adapters' weights that predicted the token, where they are wanted and came from the X-LoRA
    classifier; None after they were frozen."""


@dataclass(slots=True, eq=False)
class _Running:
    """A prompt in a slot; compared by identity, for each token."""

    index: int
    prompt: Prompt
    slot: int
    held: int
    """Tokens in the cache once the dispatched steps have run."""

    @property
    def steps(self) -> int:
        """Decode steps dispatched."""
        return self.held - len(self.prompt.tokens) + 1


def generate(runner: Runner, state: RunnerState, prompts: Sequence[Prompt]) -> Iterator[Generated]:
    """Run all prompts to their ends; slots that become free take the next prompt.

    Each step is dispatched before the tokens of the one before are read, so the device does not wait for the host.

    Args:
      state: donated; of no use afterwards.
    Yields: tokens as they come, those of all prompts mixed.
    """
    waiting = deque(enumerate(prompts))
    free = list(range(runner.slots))
    running: list[_Running] = []
    in_flight: tuple[list[_Running], Stepped] | None = None
    policy = AheadPolicy(runner.ahead_costs, possible=runner.can_run_ahead)
    while waiting or running or in_flight:
        while waiting and free:
            index, prompt = waiting.popleft()
            slot = free.pop(0)
            state = runner.admit(state, slot, prompt.tokens, prompt.params, prompt.choice)
            for chunk in runner.chunks(len(prompt.tokens)):
                state = runner.prefill(state, slot, prompt.tokens, chunk, scaling=prompt.choice.xlora).state
            running.append(_Running(index, prompt, slot, len(prompt.tokens) - 1))
        dispatched = None
        # A sequence may be one step ahead of what was read; it must not run out of its slot.
        ready = [r for r in running if r.held < runner.length]
        if ready:
            features = Features()
            slots = [r.slot for r in ready]
            passes = policy.passes([(r.prompt.choice, r.steps) for r in ready], runner.row_bucket(slots))
            for r in ready:
                features |= Features.of(r.prompt.params)
                r.held += 1
            longest = max(r.held for r in ready)
            stepped = runner.decode(state, slots, features, longest=longest, scaling=passes.scaling, ahead=passes.ahead)
            state = stepped.state
            dispatched = (ready, stepped)
        if in_flight is not None:
            rows, stepped = in_flight
            host = np.asarray(stepped.packed)
            wanted = any(r.prompt.keep_weights for r in rows)
            weights = np.asarray(stepped.weights) if wanted and stepped.weights is not None else None
            emitted = None if stepped.emitted is None else np.asarray(stepped.emitted)
            if emitted is not None:
                policy.observe(sum(bool(emitted[r.slot]) for r in rows), len(rows))
            for r in rows:
                if r not in running:
                    continue  # it ended with the step before
                if emitted is not None and not emitted[r.slot]:
                    r.held -= 1
                    continue
                sampled = unpack(host[r.slot], r.prompt.params.logprobs)
                piece = r.prompt.answer.push(sampled)
                if piece.finish_reason is not None:
                    running.remove(r)
                    free = sorted([*free, r.slot])
                own = weights[r.slot] if weights is not None and r.prompt.keep_weights else None
                yield Generated(r.index, piece, sampled, own)
        in_flight = dispatched
