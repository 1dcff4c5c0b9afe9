"""Measured times of a program's kernels, beside what their bytes would take."""

from __future__ import annotations

import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from benchmarks.gpu.devices import LAUNCH
from benchmarks.gpu.report import Report

TOLERANCE = 0.2
"""A kernel whose time differs by more from its prediction is worth a look."""


@dataclass(frozen=True, kw_only=True)
class TimedKernel:
    """A kernel of a program, or several of one name."""

    name: str
    scope: str
    """Where in the model it comes from."""
    times: int
    predicted_seconds: float
    """Bytes over bandwidth, at least a launch; of all its launches in one run."""
    measured_seconds: float

    @property
    def is_off(self) -> bool:
        return abs(self.measured_seconds - self.predicted_seconds) > TOLERANCE * self.predicted_seconds


def kernel_seconds(run: Callable[[], Any], repeats: int = 5) -> dict[str, float]:
    """The time of each kernel in one run, by its name in the compiled program: JAX's profiler.

    On a GPU, kernels in command buffers have no names: run with `XLA_FLAGS=--xla_gpu_enable_command_buffer=`.
    """
    jax.block_until_ready(run())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(repeats):
                jax.block_until_ready(run())
        (path,) = Path(folder).glob("**/*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(path))
    total: dict[str, float] = defaultdict(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of JAX's own types
        for plane in profile.planes:
            for line in plane.lines:
                for event in line.events:
                    name = dict(event.stats).get("hlo_op")
                    if name is not None:
                        total[str(name)] += event.duration_ns * 1e-9
    return {name: seconds / repeats for name, seconds in total.items()}


def compared(report: Report, measured: Mapping[str, float], bandwidth: float) -> list[TimedKernel]:
    """The kernels of a program that were measured, longest first.

    Args:
      bandwidth: of the device's memory, bytes per second.
    """
    found = [
        TimedKernel(
            name=kernel.name,
            scope=kernel.scope,
            times=kernel.times,
            predicted_seconds=max(kernel.moved / bandwidth, LAUNCH * kernel.times),
            measured_seconds=measured[kernel.name],
        )
        for kernel in report.kernels
        if kernel.name in measured
    ]
    return sorted(found, key=lambda kernel: -kernel.measured_seconds)
