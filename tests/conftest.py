"""What all tests share: compiled programs are kept between runs, and servers started by a test find them too."""

from __future__ import annotations

import os
from pathlib import Path

# In the project, not in the system's temporary directory: what is loaded from there is machine code.
_PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "jax"

# By environment, before JAX is imported, so that processes which a test starts inherit it.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_PROGRAMS))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
