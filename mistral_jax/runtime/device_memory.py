"""The memory of a GPU beside weights: what programs need while they run, and what is said where it is not there."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import jax

from mistral_jax.model.attention_kernel import MOST_PIECES
from mistral_jax.model.config import MistralConfig
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.buckets import SCORE_CHUNK
from mistral_jax.runtime.step import RUN_TOKENS

_COPIES_OF_LOGITS = 26
"""Log-probabilities sort the logits of each row, with their places."""

_MIB = 2**20
_ADVICE = "take fewer slots (--max-seqs) or shorter sequences (--max-seq-len)"


class DeviceMemoryError(ValueError):
    """A device has not enough memory. The message has the numbers."""


def temporary_bytes(
    config: MistralConfig,
    *,
    slots: int,
    chunks: Sequence[int],
    itemsize: int,
    rank_rows: int = 0,
    layerwise: bool = False,
) -> int:
    """Bytes that the largest program needs at most, besides its arguments and results. Known before any is compiled.

    `tests/benchmarks/test_gpu_programs.py` compares it with compiled programs.

    Args:
      slots: rows of a decode step.
      chunks: lengths of prefill chunks.
      itemsize: of activations.
      rank_rows: of all adapters together.
      layerwise: whether an X-LoRA classifier weights the adapters of each module.
    """
    D, F, V, N = config.hidden_size, config.intermediate_size, config.vocab_size, config.num_heads
    # Gate and up, and what is made of them; norms, residuals, queries, keys and values.
    per_token = (8 + itemsize) * F + 24 * D
    # The adapter weights of each rank row, once for each module that has its own.
    per_token += 4 * rank_rows * (7 * config.num_layers if layerwise else 7)
    attention = slots * RUN_TOKENS * N * MOST_PIECES * (config.head_dim + 2) * 4
    scored = min(SCORE_CHUNK, max(chunks))
    return max(
        max(chunks) * per_token,
        scored * (per_token + 4 * V * _COPIES_OF_LOGITS),
        # The logits after each token of a run are there while they are sampled.
        slots * (RUN_TOKENS * per_token + 4 * V * (_COPIES_OF_LOGITS + RUN_TOKENS)) + attention,
    )


def check_room(compiled: jax.stages.Compiled, placement: Placement) -> None:
    """Before a compiled program runs on a GPU: out of memory, it would take its donated arguments with it.

    Raises:
      DeviceMemoryError: it needs more than is free.
    """
    memory: Any = compiled.memory_analysis()
    if placement.platform == "cpu" or memory is None:
        return
    needed, free = int(memory.temp_size_in_bytes), placement.free_memory()
    if needed > free:
        raise DeviceMemoryError(
            f"a program needs {needed / _MIB:,.0f} MiB while it runs, and {free / _MIB:,.0f} MiB are left beside "
            f"weights and cache; {_ADVICE}, or a shorter --prefill-chunk"
        )


@contextmanager
def allocating(what: str, nbytes: int) -> Generator[None]:
    """While an allocation of so many bytes runs: that it fails is said in our words.

    Raises:
      DeviceMemoryError: there is not so much memory.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DeviceMemoryError(
            f"{what} of {nbytes / _MIB:,.0f} MiB does not fit beside the weights; {_ADVICE}"
        ) from error
