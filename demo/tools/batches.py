"""Conversations as batches of padded tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from mistral_jax.training.chat_data import Example

_ROWS, _PAD_TO = 8, 64


def padded(examples: Sequence[Example]) -> Iterator[tuple[list[int], np.ndarray]]:
    """Numbers of up to 8 examples of about the same length, and their tokens: int32 [8, T]; rows without one are 0."""
    order = sorted(range(len(examples)), key=lambda i: len(examples[i]))
    for first in range(0, len(order), _ROWS):
        numbers = order[first : first + _ROWS]
        tokens = np.zeros((_ROWS, -(-len(examples[numbers[-1]]) // _PAD_TO) * _PAD_TO), np.int32)
        for row, i in enumerate(numbers):
            tokens[row, : len(examples[i])] = examples[i].tokens
        yield numbers, tokens
