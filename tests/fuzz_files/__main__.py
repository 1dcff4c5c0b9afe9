"""Reads mutated files in a process of its own with bounded memory, and says what became of them.

    python -m tests.fuzz_files --count 20000                      # all kinds, one after another
    python -m tests.fuzz_files --kind tokenizer.json --first 4711 --count 1 --keep mutated.bin    # one file again

A file that escapes is named by its number, which with the seed gives the same file again.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

from tests.fuzz_files.kinds import DOCUMENTED, Kind, Reader, all_kinds

MOST_SECONDS = 10.0
"""Of processor time for one reader and one file. A loaded machine is forgiven; the slowest is printed."""
MOST_MEMORY = 2**30
"""Of address space beyond what the process has before the first file."""
MOST_LENGTH = 1500
"""Characters of an error's message."""


class TooSlowError(BaseException):
    """Passes through every `except Exception`."""


def run(kind: Kind, *, count: int, first: int = 0, seed: int = 1, keep: Path | None = None) -> dict[str, Any]:
    """Read mutated files `first` to `first + count`; what became of them, as plain data."""
    loaded = refused = 0
    slowest, slowest_file = 0.0, first
    escaped: list[dict[str, Any]] = []
    before = _resident()
    for number in range(first, first + count):
        chance = random.Random(f"{seed} {kind.name} {number}")
        path, good = chance.choice(kind.seeds)
        path.unlink(missing_ok=True)
        data = kind.mutate(good, chance)
        path.write_bytes(data)
        if keep is not None:
            keep.write_bytes(data)
        problems: list[str] = []
        was_loaded = True
        for reader in kind.readers(path):
            start = time.process_time()
            message, problem = _read(reader)
            taken = time.process_time() - start
            was_loaded &= message is None and problem is None
            if taken > slowest:
                slowest, slowest_file = taken, number
            if problem is not None:
                problems.append(problem)
            if message is not None and ("\n" in message or len(message) > MOST_LENGTH or not message.strip()):
                problems.append(f"a message of {len(message)} characters, or of several lines: {message[:200]!r}")
        loaded, refused = loaded + was_loaded, refused + (not was_loaded)
        if problems and len(escaped) < 20:
            escaped.append({"number": number, "place": path.name, "problems": problems})
        path.write_bytes(good)
    return {
        "kind": kind.name,
        "files": count,
        "loaded": loaded,
        "refused": refused,
        "slowest": round(slowest, 3),
        "slowest_file": slowest_file,
        "grown_mib": round((_peak() - before) / 2**20, 1),
        "escaped": escaped,
    }


def _read(reader: Reader) -> tuple[str | None, str | None]:
    """The message of a proper error, and what is wrong if it was none."""
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        reader()
        return None, None
    except DOCUMENTED as error:
        return str(error), None
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return None, "".join(traceback.format_exception(error)[-6:])
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _too_slow(number: int, frame: FrameType | None) -> None:
    raise TooSlowError(f"more than {MOST_SECONDS} s")


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    # Not `getrusage`, whose peak a process inherits from the one that started it.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def _limit_memory() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_MEMORY, resource.RLIM_INFINITY))


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.fuzz_files", description=__doc__)
    parser.add_argument("--kind", help="one kind; all where it is left out")
    parser.add_argument("--count", type=int, default=300, help="files of each kind")
    parser.add_argument("--first", type=int, default=0, help="number of the first file")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--keep", type=Path, help="where each mutated file is written, too: the last one is what crashed"
    )
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGPROF, _too_slow)
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        kinds = all_kinds(Path(scratch))
        chosen = [kinds[args.kind]] if args.kind else list(kinds.values())
        for kind in chosen:
            for reader in kind.readers(kind.seeds[0][0]):  # imports, and what is made once
                _read(reader)
        _limit_memory()
        for kind in chosen:
            print(f"begin {kind.name}", file=sys.stderr, flush=True)
            result = run(kind, count=args.count, first=args.first, seed=args.seed, keep=args.keep)
            failed |= bool(result["escaped"])
            print(json.dumps(result), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
