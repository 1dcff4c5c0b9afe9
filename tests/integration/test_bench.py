"""`mistral-jax bench` on the bundled model: what it prints is complete and consistent."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow(by="file")


@pytest.mark.slow
def test_bench_times_each_number_of_rows():
    command = [
        *(sys.executable, "-m", "serving.commands.cli", "--compilation-cache", os.environ["JAX_COMPILATION_CACHE_DIR"]),
        *("bench", "--rows", "1,3", "--prompt-tokens", "20", "--answer-tokens", "6", "--repeats", "1", "--json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["model"], report["dtype"], report["prompt_tokens"]) == ("demo", "bfloat16", 20)
    assert report["weight_bytes"] == 2 * report["parameters"]
    assert "16.00 bits per weight (bfloat16 100%)" in report["weights"]
    assert report["copy_bytes_per_second"] > 0
    assert [timing["rows"] for timing in report["timings"]] == [1, 3]
    for timing in report["timings"]:
        step = timing["decode_step_ms"] / 1e3
        assert timing["decode_tokens_per_second"] == pytest.approx(timing["rows"] / step)
        assert timing["weight_bytes_per_second"] == pytest.approx(report["weight_bytes"] / step)
        assert timing["prefill_tokens_per_second"] > 0
