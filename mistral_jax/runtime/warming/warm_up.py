"""Compiling all programs of a runner before the first request.

Compiling a program takes seconds, during which XLA releases the GIL: on a CPU several are compiled at once. JAX keeps
compiled programs for later calls, so running each once afterwards, as a check, takes milliseconds.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import jax

from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.calls import Call, Changed, Forwarded, Looked, Prefilled, RunnerState, Stepped, Taken
from mistral_jax.runtime.device_memory import check_room

_MOST_THREADS = 4
"""Compiling also takes memory: a few hundred megabytes for a program of a large model."""
_TIMES = 3

AnyCall = Call[Prefilled] | Call[Forwarded] | Call[Changed] | Call[Taken] | Call[Looked] | Call[Stepped]
EmptyCall = Callable[[RunnerState], AnyCall]
"""Makes a call that changes no sequence."""


def compile_and_run(
    calls: Sequence[EmptyCall], state: RunnerState, *, on_cpu: bool, progress: Callable[[int, int], None]
) -> RunnerState:
    """Compile the program of each call, and run it once.

    Args:
      state: donated.
      on_cpu: compile several at once. On a GPU, XLA times kernels while it compiles, so nothing else should run.
      progress: called with (programs done, total programs).
    Raises:
      DeviceMemoryError: not enough memory is free for a program.
    """
    threads = min(_MOST_THREADS, os.cpu_count() or 1) if on_cpu else 1
    compiling: deque[tuple[EmptyCall, Future[Any]]] = deque()
    progress(0, len(calls))
    with _frozen_heap(), ThreadPoolExecutor(threads, thread_name_prefix="compile") as pool:
        for number, call in enumerate(calls):
            compiling.append((call, pool.submit(call(state).lower().compile)))
            while on_cpu and compiling and compiling[0][1].done():
                state = _run_first(compiling, state)
            progress(number + 1 - len(compiling), len(calls))
        while compiling:
            state = _run_first(compiling, state)
            progress(len(calls) - len(compiling), len(calls))
    jax.block_until_ready((state.caches, state.rows))
    return state


def _run_first(compiling: deque[tuple[EmptyCall, Future[Any]]], state: RunnerState) -> RunnerState:
    call, compiled = compiling.popleft()
    check_room(compiled.result(), Placement.of(state.rows))
    return call(state)().state


@contextmanager
def _frozen_heap() -> Generator[None]:
    """Exempts existing objects from garbage collection, and collects new ones less often. Tracing allocates many
    objects, and scanning the existing ones again and again takes a sixth of the time.
    """
    thresholds = gc.get_threshold()
    gc.set_threshold(100_000, *thresholds[1:])
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def time_against(call: EmptyCall, other: EmptyCall, state: RunnerState) -> tuple[RunnerState, float]:
    """Run two calls alternately, `_TIMES` times each; return the shortest time of the first relative to that of the
    second. `state` is donated."""
    shortest = [float("inf"), float("inf")]
    for _ in range(_TIMES):
        for number, each in enumerate((call, other)):
            start = time.perf_counter()
            result = each(state)()
            state = result.state
            jax.block_until_ready(result)
            shortest[number] = min(shortest[number], time.perf_counter() - start)
    return state, shortest[0] / shortest[1]
