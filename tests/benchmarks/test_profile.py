"""Times of kernels, by JAX's profiler; on a CPU it names them as well."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from benchmarks.gpu.devices import LAUNCH
from benchmarks.gpu.profile import TOLERANCE, compared, kernel_seconds
from benchmarks.gpu.report import Kernel, Report


def test_kernels_are_timed_by_their_names_in_the_program() -> None:
    program = jax.jit(lambda x: jnp.tanh(x @ x) + 1)
    x = jnp.ones((400, 400))
    found = kernel_seconds(lambda: program(x), repeats=3)
    text = program.lower(x).compile().as_text()
    assert text is not None
    assert found
    assert all(f"%{name}" in text for name in found)
    assert all(0 < seconds < 1 for seconds in found.values())


def test_kernels_are_set_beside_their_bytes() -> None:
    kernels = (
        Kernel(name="large", kind="fusion", scope="layer0/mlp", read=3 * 10**9, written=10**9),
        Kernel(name="small", kind="fusion", scope="layer0/attention", read=100, written=10, times=3),
        Kernel(name="inside", kind="fusion", scope="", read=1, written=1),
    )
    report = Report(kernels=kernels, temporary=0, arguments=0, in_place=0, conditionals=0)
    predicted = {"large": 0.004, "small": 3 * LAUNCH}
    for factor in (1.0, 1 + 2 * TOLERANCE, 1 - 2 * TOLERANCE):
        measured = {name: factor * seconds for name, seconds in predicted.items()}
        large, small = compared(report, measured, bandwidth=1e12)
        assert (large.name, small.name) == ("large", "small")
        assert large.predicted_seconds == pytest.approx(predicted["large"])
        assert small.predicted_seconds == pytest.approx(predicted["small"])
        assert large.is_off is small.is_off is (factor != 1.0)
