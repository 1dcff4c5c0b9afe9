"""What all tests share: compiled programs are kept between runs, and servers started by a test find them too; and which
of the slow tests are run."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.memory_maps import release_programs

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

# Servers that tests start compile nothing beside their requests: some tests look at times.
os.environ["MISTRAL_JAX_WAIT_FOR_PROGRAMS"] = "yes"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--sample-slow",
        type=int,
        default=1,
        metavar="N",
        help="of the tests marked slow run one in N, others for each commit; 1: all",
    )


# Before xdist reads the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = {item: _sampled_by(item) for item in items if item.get_closest_marker("slow")}
    for item in items:
        # A file's tests share what its fixtures make, and those of one server share that.
        shared = item.path.parent if "server" in getattr(item, "fixturenames", ()) else item.path
        name = str(shared.relative_to(config.rootpath))
        item.add_marker(pytest.mark.xdist_group(name))
    # Several processes then end at about the same time.
    first = {item.path for item in slow}
    items.sort(key=lambda item: item.path not in first)
    one_in = config.getoption("--sample-slow")
    if one_in == 1:
        return
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=config.rootpath, capture_output=True, check=False).stdout
    kept: set[str] = set()
    # Files apart from tests, as one of them takes as long as many of these.
    for files in (True, False):
        samples = {sample for sample in slow.values() if sample.endswith(".py") is files}
        samples = sorted(samples, key=lambda sample: hashlib.sha256(head + sample.encode()).digest())
        kept |= set(samples[: -(-len(samples) // one_in)])
    left_out = {item for item, sample in slow.items() if sample not in kept}
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


def _sampled_by(item: pytest.Item) -> str:
    """What is drawn or left out as a whole: the test, its file, or its file's tests with one value of a parameter."""
    marker = item.get_closest_marker("slow")
    assert marker is not None
    by = marker.kwargs.get("by")
    if by == "file":
        return str(item.path)
    return item.nodeid if by is None else f"{item.path}: {item.callspec.params[by]}"  # type: ignore[attr-defined]


@pytest.fixture(autouse=True, scope="module")
def _programs_are_released() -> Iterator[None]:
    yield
    release_programs()
