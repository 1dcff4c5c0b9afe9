"""Bounds of processor time, which other processes on the same cores do not use up.

For work of the test's own process. What is done in another process, or has to wait, is bounded in seconds of the
clock: generously, as such a bound only shows that nothing hangs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from contextlib import contextmanager


@contextmanager
def cpu_seconds_at_most(seconds: float, *, children: bool = False) -> Generator[None]:
    """Fails if the block takes more processor time: user and system time of all threads of this process.

    A block that waits takes none: use it only where no more than computing or reading can make the block slow.

    Args:
      seconds: of processor time.
      children: whether processes count that the block starts and waits for.

    Raises:
      AssertionError: says the measured and the allowed seconds.
    """
    start = _used(children)
    yield
    used = _used(children) - start
    assert used < seconds, f"took {used:.2f} seconds of processor time; expected less than {seconds:g}"


def _used(children: bool) -> float:
    if not children:
        return time.process_time()
    times = os.times()
    return time.process_time() + times.children_user + times.children_system
