"""Reading adapters' files has a deadline, after which the next adapter can be loaded."""

from __future__ import annotations

import threading
import time

import pytest

from serving.api.errors import UnavailableError
from serving.build.adapter_loader import MAX_STUCK, Readers


def test_what_takes_too_long_is_left_behind_and_the_next_is_read() -> None:
    readers, gate = Readers(0.5), threading.Event()
    start = time.monotonic()
    try:
        for _ in range(MAX_STUCK):
            with pytest.raises(UnavailableError, match=r"took more than 0\.5 seconds; nothing was loaded"):
                readers.run(gate.wait)
            if _ < MAX_STUCK - 1:
                assert readers.run(lambda: "read") == "read"
        assert time.monotonic() - start < 30
        with pytest.raises(UnavailableError, match="4 adapters are still being read"):
            readers.run(lambda: "read")
    finally:
        gate.set()
    deadline = time.monotonic() + 30
    while threading.active_count() > 1 and any(t.name == "adapter files" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert readers.run(lambda: "read") == "read"


def test_errors_of_reading_are_those_of_the_caller() -> None:
    def broken() -> None:
        raise ValueError("no adapter")

    with pytest.raises(ValueError, match="no adapter"):
        Readers(5).run(broken)
