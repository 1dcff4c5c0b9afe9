"""Answers gathered from `mistral_jax.notebook.generate`, with the weights of the adapters behind each token.

Axis letters: T tokens of an answer, M scaling columns, A adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.adapters.selection import numbered
from mistral_jax.notebook.generate import Prompt, generate
from mistral_jax.notebook.results import Generation
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling import Sampled


def whole_answers(runner: Runner, prompts: Sequence[Prompt]) -> list[Generation]:
    """Run all prompts to their ends; the answers come in the order of the prompts."""
    texts: list[list[str]] = [[] for _ in prompts]
    tokens: list[list[Sampled]] = [[] for _ in prompts]
    weights: list[list[np.ndarray | None]] = [[] for _ in prompts]
    reasons = ["" for _ in prompts]
    for index, piece, _, used in generate(runner, runner.new_state(), prompts):
        texts[index].append(piece.text)
        tokens[index].extend(piece.tokens)
        weights[index].append(used)
        reasons[index] = piece.finish_reason or ""
    entries = [] if runner.adapters is None else numbered(runner.adapters)
    return [
        Generation(
            text="".join(texts[i]),
            tokens=tuple(tokens[i]),
            finish_reason=reasons[i],
            prompt_tokens=len(prompt.tokens),
            completion_tokens=prompt.answer.count,
            adapters=tuple(entry.name for entry in entries),
            adapter_weights=_used(runner, prompt.choice, weights[i])[: len(tokens[i]), :, [e.number for e in entries]]
            if prompt.keep_weights and entries
            else None,
        )
        for i, prompt in enumerate(prompts)
    ]


def _used(runner: Runner, choice: AdapterChoice, made: Sequence[np.ndarray | None]) -> np.ndarray:
    """float32 [T, M, A]: the weights of every step of an answer.

    Args:
      made: [M, A] for each step: what the classifier made, where it ran.
    """
    columns = 1 if runner.xlora is None else runner.xlora.columns.count
    capacity = 0 if runner.adapters is None else runner.adapters.capacity
    used = np.zeros((len(made), columns, capacity), np.float32)
    last = choice.fixed_weights(capacity)
    for row, step in zip(used, made, strict=True):
        # Weights that are fixed, or frozen by now, are not made again.
        last = last if step is None or not choice.xlora else step
        row[:] = last
    return used
