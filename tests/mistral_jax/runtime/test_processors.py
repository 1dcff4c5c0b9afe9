"""Bits on other processors than the one at hand: XLA compiles for the instructions that it is told of, in a process of
their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = (
    "test_runner.py::test_a_request_has_the_same_bits_alone_in_any_slot[1031-plain-float32-False]",
    "test_reuse.py::test_a_token_is_stored_with_the_same_bits_by_every_chunk_and_step[plain-float32]",
    "test_reuse.py::test_a_token_is_stored_with_the_same_bits_by_every_chunk_and_step[plain-bfloat16]",
)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction sets are those of x86-64")
@pytest.mark.slow(by="instructions")
@pytest.mark.parametrize("instructions", ["SSE4_2", "AVX2", "AVX512"])
def test_bits_are_the_same_alone_and_in_every_chunk_with_these_instructions(instructions: str, tmp_path: Path) -> None:
    """With AVX2 LLVM rounds the products of a rotation of two rows at other places than those of eight."""
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_max_isa={instructions}",
        # The programs are not those of this process.
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    tests = [str(Path(__file__).parent / test) for test in TESTS]
    done = subprocess.run([*command, *tests], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert f"{len(TESTS)} passed" in done.stdout
