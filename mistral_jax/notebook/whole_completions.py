"""Complete generations collected from `mistral_jax.notebook.generate`, with the adapter weights of each token.

Axis letters: T tokens of a completion, M scaling columns, A adapters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mistral_jax.adapters.choice import AdapterChoice
from mistral_jax.adapters.selection import numbered
from mistral_jax.notebook.generate import TextRequest, generate
from mistral_jax.notebook.results import Generation
from mistral_jax.runtime.runner import Runner
from mistral_jax.runtime.sampling.sample import Sampled


def whole_completions(runner: Runner, requests: Sequence[TextRequest]) -> list[Generation]:
    """Run all requests to their ends. Results are in the order of the requests."""
    texts: list[list[str]] = [[] for _ in requests]
    tokens: list[list[Sampled]] = [[] for _ in requests]
    weights: list[list[np.ndarray | None]] = [[] for _ in requests]
    reasons = ["" for _ in requests]
    stops: list[int | str | None] = [None for _ in requests]
    for index, piece, _, used in generate(runner, runner.new_state(), requests):
        texts[index].append(piece.text)
        tokens[index].extend(piece.tokens)
        weights[index].append(used)
        reasons[index], stops[index] = piece.finish_reason or "", piece.stop_reason
    entries = [] if runner.adapters is None else numbered(runner.adapters)
    return [
        Generation(
            text="".join(texts[i]),
            tokens=tuple(tokens[i]),
            finish_reason=reasons[i],
            stop_reason=stops[i],
            prompt_tokens=len(request.tokens),
            completion_tokens=request.completion.count,
            adapters=tuple(entry.name for entry in entries),
            adapter_weights=_used(runner, request.choice, weights[i])[: len(tokens[i]), :, [e.number for e in entries]]
            if request.keep_weights and entries
            else None,
        )
        for i, request in enumerate(requests)
    ]


def _used(runner: Runner, choice: AdapterChoice, made: Sequence[np.ndarray | None]) -> np.ndarray:
    """float32 [T, M, A]: the adapter weights of every step of a completion.

    Args:
      made: for each step the classifier's weights [M, A], or None where it did not run.
    """
    columns = 1 if runner.xlora is None else runner.xlora.columns.count
    capacity = 0 if runner.adapters is None else runner.adapters.capacity
    used = np.zeros((len(made), columns, capacity), np.float32)
    last = choice.fixed_weights(capacity)
    for row, step in zip(used, made, strict=True):
        # The classifier does not run for fixed or frozen weights: the last ones hold.
        last = last if step is None or not choice.xlora else step
        row[:] = last
    return used
