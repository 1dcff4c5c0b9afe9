"""What all tests share: compiled programs are kept between runs, and servers started by a test find them too; and which
of the slow tests are run."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

# In the project, not in the system's temporary directory: what is loaded from there is machine code.
_PROGRAMS = Path(__file__).parents[1] / ".pytest_cache" / "jax"

# By environment, before JAX is imported, so that processes which a test starts inherit it. A folder for each of several
# processes, below that of the one which started them: JAX does not write an entry at once, so that another process
# could read half of one.
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(os.environ.get("JAX_COMPILATION_CACHE_DIR", _PROGRAMS)) / os.environ.get("PYTEST_XDIST_WORKER", "")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sample-slow",
        type=int,
        default=1,
        metavar="N",
        help="of the tests marked slow run one in N, others for each commit; 1: all",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = [item for item in items if item.get_closest_marker("slow")]
    # Several processes then end at about the same time.
    first = {item.path for item in slow}
    items.sort(key=lambda item: item.path not in first)
    count = -(-len(slow) // config.getoption("--sample-slow"))
    if count == len(slow):
        return
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=config.rootpath, capture_output=True, check=False).stdout
    left_out = sorted(slow, key=lambda item: hashlib.sha256(head + item.nodeid.encode()).digest())[count:]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
