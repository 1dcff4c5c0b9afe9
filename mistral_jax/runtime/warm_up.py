"""Compiling all programs of a runner before the first request.

Compiling takes seconds for each program, and XLA lets the interpreter go meanwhile: on a CPU several are compiled at
once. JAX keeps what was compiled for the calls that follow, so that running every program once, to be sure, then takes
milliseconds.
"""

from __future__ import annotations

import gc
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mistral_jax.model.kv_cache import BLOCK
from mistral_jax.runtime.sampling import Features
from mistral_jax.runtime.sampling_params import SamplingParams

if TYPE_CHECKING:
    from mistral_jax.runtime.runner import Call, Prefilled, Runner, RunnerState, Stepped

_MOST_THREADS = 4
"""Compiling takes memory, too: some hundred megabytes for a program of a large model."""

_EmptyCall = Callable[["RunnerState"], "Call[Prefilled] | Call[Stepped]"]
"""Makes a call that leaves all sequences as they are."""


def warm_up(runner: Runner, state: RunnerState, progress: Callable[[int, int], None]) -> RunnerState:
    """See `Runner.warm_up`."""
    biased = SamplingParams(temperature=0.0, seed=0, logit_bias={0: 0.0})
    state = runner.admit(state, 0, (0,), biased)
    calls = list(_empty_calls(runner))
    on_cpu = runner.device.platform == "cpu"
    # On a GPU, XLA times kernels while it compiles, and nothing else should run meanwhile.
    threads = min(_MOST_THREADS, os.cpu_count() or 1) if on_cpu else 1
    compiling: deque[tuple[_EmptyCall, Future[Any]]] = deque()
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
    return _time_ahead(runner, state) if runner.can_run_ahead else state


def _run_first(compiling: deque[tuple[_EmptyCall, Future[Any]]], state: RunnerState) -> RunnerState:
    call, compiled = compiling.popleft()
    compiled.result()
    return call(state)().state


@contextmanager
def _frozen_heap() -> Generator[None]:
    """Keeps the garbage collector from what is there already, through which it would look again and again while tracing
    makes its many objects: a sixth of the time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _empty_calls(runner: Runner) -> Iterator[_EmptyCall]:
    """One of each program."""
    lengths = [blocks * BLOCK for blocks in runner.block_buckets] or [1]
    for scaling in (False,) if runner.xlora is None else (False, True):
        for length in lengths:
            for size in runner.chunk_sizes if runner.keeps_cache else ():
                yield partial(_empty_prefill, runner, size=size, length=length, scaling=scaling)
            for bucket in runner.row_buckets:
                yield partial(_empty_decode, runner, bucket=bucket, length=length, scaling=scaling)
                if scaling and runner.can_run_ahead:
                    yield partial(_empty_decode, runner, bucket=bucket, length=length - 1, scaling=True, ahead=True)
        yield partial(_empty_prefill, runner, size=runner.score_size, length=lengths[-1], scaling=scaling, score=True)


def _empty_prefill(
    runner: Runner, state: RunnerState, *, size: int, length: int, scaling: bool, score: bool = False
) -> Call[Prefilled]:
    """A chunk of which no token is real: nothing is stored."""
    tokens = np.zeros((size + int(score),), np.int32)
    return runner.prefill_call(state, 0, tokens, start=length, count=0, scaling=scaling, score=score)


def _empty_decode(
    runner: Runner, state: RunnerState, *, bucket: int, length: int, scaling: bool, ahead: bool = False
) -> Call[Stepped]:
    """A step without any active row."""
    mask = np.zeros((bucket,), np.bool_)
    return runner.decode_call(state, mask, Features(), longest=length, scaling=scaling, ahead=ahead)


def _time_ahead(runner: Runner, state: RunnerState) -> RunnerState:
    """Time steps of two passes against steps ahead, without active rows: how short the texts are matters little."""
    for bucket in runner.row_buckets:
        seconds: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(3):
            for ahead in (False, True):
                start = time.perf_counter()
                state = _empty_decode(runner, state, bucket=bucket, length=1, scaling=True, ahead=ahead)().state
                jax.block_until_ready((state.caches, state.rows))
                seconds[ahead].append(time.perf_counter() - start)
        runner.ahead_costs[bucket] = min(seconds[True]) / min(seconds[False])
    return state
