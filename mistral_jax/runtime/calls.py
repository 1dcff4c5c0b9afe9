"""What goes into the programs of a runner and what comes out: the state, a call, and the results of calls.

Axis letters: R rows of a decode step, T tokens of a chunk, M scaling columns, A adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from mistral_jax.runtime.mixing import Caches
from mistral_jax.runtime.step import Rows


@dataclass(frozen=True, slots=True)
class RunnerState:
    """All sequences: caches and rows. Donated by every call that takes it."""

    caches: Caches
    rows: Rows


class Stepped(NamedTuple):
    """What a decode step gives."""

    state: RunnerState
    packed: jax.Array
    """int32 [R, PACKED_WIDTH], a row for each slot from 0 on; see `mistral_jax.runtime.sampling.unpack`."""
    weights: jax.Array | None = None
    """float32 [R, M, A]: of the adapters, where the scaling pass was run."""
    emitted: jax.Array | None = None
    """bool [R]: the rows that sampled a token; None: all that were active."""


class Prefilled(NamedTuple):
    """What a prefill chunk gives."""

    state: RunnerState
    done: jax.Array
    """A scalar that is ready when the chunk has run."""
    weights: jax.Array | None = None
    """float32 [T, M, A]: of the adapters, where the scaling pass was run."""
    scores: jax.Array | None = None
    """int32 [T, PACKED_WIDTH] of a chunk that is scored (see `mistral_jax.runtime.sampling.unpack`): row i is of token
    `start + i + 1`."""


class Call[R](NamedTuple):
    """A jitted program with its arguments: calling it runs it, lowering it is the first half of compiling it."""

    program: Any
    arguments: tuple[Any, ...]
    static: dict[str, Any]
    result: Callable[..., R]
    """Makes something of the program's outputs."""

    def __call__(self) -> R:
        return self.result(*self.program(*self.arguments, **self.static))

    def lower(self) -> jax.stages.Lowered:
        return self.program.lower(*self.arguments, **self.static)
