"""Opening and loading a GGUF file: time to the header, speed of loading beside a plain read of the same file, and host
memory.

usage: python benchmarks/load_gguf.py FILE.gguf [--quant auto,none] [--rounds 5] [--output FILE.json]

Everything is in the page cache after the first round. The plain read (pread into newly allocated memory, as loading
needs it, and into memory that was written before) and the loads alternate. Host memory is the peak of a process that
loads once, beyond what the weights themselves take: on a CPU the device's memory is the host's.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

PIECE = 8 * 2**20

OPEN = """
import sys, time
start = time.perf_counter()
from conversion.gguf.container.file import GGUFFile
imported = time.perf_counter()
file = GGUFFile(sys.argv[1])
print(file.architecture, file.metadata["general.name"], len(file.tensors))
done = time.perf_counter()
print(imported - start, done - imported)
"""
PEAK = """
import sys
import jax
from flax import nnx
from mistral_jax.checkpoint.description import describe
from mistral_jax.hub.files import find_model
from mistral_jax.checkpoint.load_module import load_module
small, big, quant = sys.argv[1:]
load_module(describe(find_model(small)), quant=quant)  # everything is imported and compiled
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
module = load_module(describe(find_model(big)), quant=quant)
held = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(module)))
print(peak() - before - held)
"""
SMALL = Path(__file__).parents[1] / "tests" / "goldens" / "gguf" / "wide.Q4_K_M.gguf"


def read(path: Path, buffer: np.ndarray[Any, np.dtype[np.uint8]]) -> float:
    """Seconds that a plain read of a whole file into `buffer` takes."""
    view = memoryview(buffer)
    start = time.perf_counter()
    with path.open("rb", buffering=0) as file:
        for first in range(0, len(buffer), PIECE):
            os.preadv(file.fileno(), [view[first : first + PIECE]], first)
    return time.perf_counter() - start


def child(script: str, *args: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, check=True)
    return done.stdout.strip().splitlines()[-1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--quant", default="auto,none")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    from mistral_jax.checkpoint.description import describe
    from mistral_jax.checkpoint.load_module import load_module
    from mistral_jax.hub.files import find_model

    size = args.file.stat().st_size
    opened = [[float(t) for t in child(OPEN, str(args.file)).split()] for _ in range(args.rounds)]
    again = np.ones(size, np.uint8)
    description = describe(find_model(str(args.file)))
    forms: list[Any] = args.quant.split(",")
    times: dict[str, list[float]] = {name: [] for name in ("read, new memory", "read, used memory", *forms)}
    for _ in range(args.rounds + 1):
        times["read, new memory"].append(read(args.file, np.empty(size, np.uint8)))
        times["read, used memory"].append(read(args.file, again))
        for quant in forms:
            start = time.perf_counter()
            module = load_module(description, quant=quant)
            times[quant].append(time.perf_counter() - start)
            del module
    medians = {name: statistics.median(found[1:]) for name, found in times.items()}
    report = {
        "file": args.file.name,
        "bytes": size,
        "open_seconds": {
            "import": statistics.median(imported for imported, _ in opened),
            "header": statistics.median(header for _, header in opened),
        },
        "gb_per_second": {name: size / seconds / 1e9 for name, seconds in medians.items()},
        "share_of_read_into_new_memory": {quant: medians["read, new memory"] / medians[quant] for quant in forms},
        "share_of_read_into_used_memory": {quant: medians["read, used memory"] / medians[quant] for quant in forms},
        "peak_host_bytes_beyond_weights": {
            quant: int(child(PEAK, str(SMALL), str(args.file), quant)) for quant in forms
        },
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
    }
    print(json.dumps(report, indent=1))
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
