"""Tests compile thousands of programs in one process; XLA aborts it when the system gives no further memory maps."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

_MOST = 20_000
"""Linux allows a process 65,530 memory maps; a compiled program takes about 150."""


def release_programs() -> None:
    """Let JAX drop its compiled programs where the process has many memory maps."""
    maps = Path("/proc/self/maps")
    if "jax" in sys.modules and maps.exists() and maps.read_bytes().count(b"\n") > _MOST:
        sys.modules["jax"].clear_caches()
        gc.collect()
