"""Unpacking of GGUF blocks: ours on JAX's default device beside gguf.quants (numpy), alternating in one run.

usage: python benchmarks/dequantize.py [--kinds Q4_0,...] [--shapes 1024x4096,14336x4096] [--rounds 9] [--output
  FILE.json]

Billions of weights per second, medians of the rounds:
- gguf: `gguf.quants.dequantize` to float32, one thread, as it is.
- f32, bf16: `conversion.dequantize.dequantize` from packed bytes on the host to a new array on the device.
- f32 in place, bf16 in place: the unpacking alone, a program that writes into memory which it has written before. The
  difference is mostly what the operating system takes for handing out new memory, page by page.
- ratio: f32 over gguf, and in brackets f32 in place over gguf.
The values of ours and gguf's are compared bit by bit on the way. JSON goes to standard output, the table to standard
error.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np

from conversion.dequantize import dequantize, unpack
from conversion.weights.ggml_types import BY_NAME, TYPES, GGMLType
from conversion.weights.tensor_source import aligned_empty
from serving.commands.bench import copy_bandwidth


def random_blocks(kind: GGMLType, rows: int, columns: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    raw = aligned_empty((rows, kind.row_bytes(columns)), np.dtype(np.uint8))
    raw[...] = np.random.default_rng(0).integers(0, 256, raw.shape, np.uint8)
    # The highest exponent bit of a float16 is cleared, wherever in the block one may be: all scales are finite.
    raw &= 0xBF
    return raw


def in_place(raw: np.ndarray[Any, Any], kind: GGMLType, dtype: Any) -> Callable[[], jax.Array]:
    program = jax.jit(lambda _, raw: unpack(raw, kind, dtype), donate_argnums=0, keep_unused=True)
    placed = jax.device_put(raw)
    values = dequantize(raw, kind, dtype=dtype)

    def again() -> jax.Array:
        nonlocal values
        values = program(values, placed).block_until_ready()
        return values

    return again


def compare(kind: GGMLType, rows: int, columns: int, rounds: int) -> dict[str, Any]:
    raw = random_blocks(kind, rows, columns)
    number = gguf.GGMLQuantizationType(kind.id)
    candidates: dict[str, Callable[[], Any]] = {
        "gguf": lambda: gguf.dequantize(raw, number),
        "f32": lambda: dequantize(raw, kind).block_until_ready(),
        "bf16": lambda: dequantize(raw, kind, dtype=jnp.bfloat16).block_until_ready(),
        "f32 in place": in_place(raw, kind, jnp.float32),
        "bf16 in place": in_place(raw, kind, jnp.bfloat16),
    }
    # The first call compiles.
    theirs, ours = (np.asarray(candidates[name]()).view(np.uint32) for name in ("gguf", "f32"))
    same_bits = bool((theirs == ours).all())
    del theirs, ours
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for candidate in candidates.values():
        candidate()
    for _ in range(rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            result = candidate()
            times[name].append(time.perf_counter() - start)
            del result
    rates = {name: rows * columns / statistics.median(seconds) / 1e9 for name, seconds in times.items()}
    ratios = {
        name: statistics.median(theirs / ours for theirs, ours in zip(times["gguf"], times[name], strict=True))
        for name in candidates
        if name != "gguf"
    }
    return {
        "kind": kind.name,
        "shape": [rows, columns],
        "same_bits": same_bits,
        "gweights_per_second": rates,
        "over_gguf": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", default=",".join(kind.name for kind in TYPES if kind.dtype is None))
    parser.add_argument("--shapes", default="1024x4096,14336x4096")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()

    device = jax.devices()[0]
    bandwidth = copy_bandwidth(device)
    columns = ("gguf", "f32", "bf16", "f32 in place", "bf16 in place")
    print(f"copy bandwidth {bandwidth / 1e9:.1f} GB/s\n", file=sys.stderr)
    print(f"| type | shape | {' | '.join(columns)} | ratio |\n|{'---|' * (len(columns) + 3)}", file=sys.stderr)
    results: list[dict[str, Any]] = []
    for shape in args.shapes.split(","):
        rows, width = (int(n) for n in shape.split("x"))
        for name in args.kinds.split(","):
            result = compare(BY_NAME[name], rows, width, args.rounds)
            results.append(result)
            rates, ratios = result["gweights_per_second"], result["over_gguf"]
            print(
                f"| {name} | {shape} | {' | '.join(f'{rates[column]:.2f}' for column in columns)} | "
                f"{ratios['f32']:.1f} ({ratios['f32 in place']:.1f}){'' if result['same_bits'] else ' BITS DIFFER'} |",
                file=sys.stderr,
                flush=True,
            )
    report = {
        "device": device.device_kind,
        "cores": os.cpu_count(),
        "copy_bytes_per_second": bandwidth,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("jax", "jaxlib", "numpy", "gguf")},
        "rounds": args.rounds,
        "results": results,
    }
    text = json.dumps(report, indent=1) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    if not all(result["same_bits"] for result in results):
        raise SystemExit("values differ from gguf.quants")


if __name__ == "__main__":
    main()
