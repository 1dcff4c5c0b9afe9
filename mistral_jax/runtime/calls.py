"""Inputs and outputs of a runner's programs: the state, a call, and the results of calls.

Axis letters: R rows of a decode step, T tokens of a chunk, D model dimension, M scaling columns, A adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from mistral_jax.runtime.mixing import Caches
from mistral_jax.runtime.prompt_lookup import Proposed
from mistral_jax.runtime.step import Forward, Rows


@dataclass(frozen=True, slots=True)
class RunnerState:
    """The state of all sequences: caches and rows. Donated by every call that takes it."""

    caches: Caches
    rows: Rows


class Forwarded(NamedTuple):
    """The results of a forward pass, the first half of a decode step."""

    state: RunnerState
    made: Forward
    """For the second half."""
    speculative: bool = False


class Changed(NamedTuple):
    """A state with other tokens or blocks; nothing was computed."""

    state: RunnerState


class Taken(NamedTuple):
    """What was copied out of a state, which does not change."""

    state: RunnerState
    copy: Any
    """See `mistral_jax.runtime.moving`."""


class Stepped(NamedTuple):
    """The results of a decode step."""

    state: RunnerState
    packed: jax.Array
    """int32 [R, PACKED_WIDTH], one row for each slot from 0 on; see `mistral_jax.runtime.sampling.sample.unpack`. Of
    several steps, or with proposals, [tokens of a row, R, PACKED_WIDTH]."""
    weights: jax.Array | None = None
    """float32 [R, M, A]: the adapter weights; None if the scaling pass did not run."""
    emitted: jax.Array | None = None
    """bool [R]: the rows that sampled a token; None: all active rows. Of a step with proposals int32 [R]: how many
    tokens each row got."""


class Looked(NamedTuple):
    """The results of a forward pass over proposed tokens."""

    state: RunnerState
    made: Proposed


class Prefilled(NamedTuple):
    """The results of a prefill chunk."""

    state: RunnerState
    done: jax.Array
    """A scalar that is ready when the chunk has run."""
    weights: jax.Array | None = None
    """float32 [T, M, A]: the adapter weights; None if the scaling pass did not run."""
    scores: jax.Array | None = None
    """int32 [T, PACKED_WIDTH] of a scored chunk (see `mistral_jax.runtime.sampling.sample.unpack`): row i scores token
    `start + i + 1`."""
    pooled: jax.Array | None = None
    """float32 [2, D] of an embedded chunk: the sum of its tokens' hidden states after the final norm, and the last
    one's."""


class Call[R](NamedTuple):
    """A jitted program with its arguments. Calling it runs the program; `lower` is the first half of compiling it."""

    program: Any
    arguments: tuple[Any, ...]
    static: dict[str, Any]
    result: Callable[..., R]
    """Builds the result from the program's outputs."""

    def __call__(self) -> R:
        return self.result(*self.program(*self.arguments, **self.static))

    def lower(self) -> jax.stages.Lowered:
        return self.program.lower(*self.arguments, **self.static)
