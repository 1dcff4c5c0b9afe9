"""Products with packed weights on a CPU: activations of 8 bits beside unrounded ones, by number of rows.

usage: python -m benchmarks.integer_products [--kinds Q4_K,Q6_K,Q8_0] [--rows 1,2,8,64,256] [--shape 11264x2048]
           [--matrices 24] [--rounds 7] [--output FILE.json]

- int8: `mistral_jax.quant.interleaved.product`.
- float: the kernel for few tokens, which converts weights to float32 (up to 64 rows).
- tiles: unpacked tiles and XLA's bfloat16 dot, as for many tokens (from 16 rows on).
Each call multiplies by several matrices, so that weights come from memory. Medians of alternating calls; the memory's
read bandwidth is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.against_llama_cpp import read_bandwidth
from conversion.weights.ggml_types import BY_NAME
from mistral_jax.quant.array import QuantizedArray
from mistral_jax.quant.interleaved import InterleavedArray, interleaved
from mistral_jax.quant.product import matmul

Weights = list[QuantizedArray] | list[InterleavedArray]


@jax.jit
def products(x: jax.Array, weights: Weights) -> list[jax.Array]:
    return [matmul(x, weight) for weight in weights]


def seconds(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", default="Q4_K,Q6_K,Q8_0")
    parser.add_argument("--rows", default="1,2,8,64,256")
    parser.add_argument("--shape", default="11264x2048")
    parser.add_argument("--matrices", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    outputs, columns = (int(n) for n in args.shape.split("x"))
    rng = np.random.default_rng(0)
    results: list[dict[str, Any]] = []
    bandwidth: list[float] = []
    for name in args.kinds.split(","):
        kind = BY_NAME[name]
        raws = [
            jnp.asarray(rng.integers(0, 255, (outputs, kind.row_bytes(columns)), dtype=np.uint8))
            for _ in range(args.matrices)
        ]
        packed, tiles = [QuantizedArray(raw, kind) for raw in raws], [interleaved(raw, kind) for raw in raws]
        for rows in map(int, args.rows.split(",")):
            x = jnp.asarray(rng.standard_normal((rows, columns)), jnp.bfloat16)
            one_sequence = x[None]  # rows of it are tokens
            forms: dict[str, Callable[[], Any]] = {"int8": partial(products, x, tiles)}
            if rows <= 64:
                forms["float"] = partial(products, x, packed)
            if rows >= 16:
                forms["tiles"] = partial(products, one_sequence, packed)
            jax.block_until_ready([run() for run in forms.values()])
            times: dict[str, list[float]] = {form: [] for form in forms}
            for _ in range(args.rounds):
                bandwidth.append(read_bandwidth(os.cpu_count() or 1))
                for form, run in forms.items():
                    times[form].append(seconds(run))
            medians = {form: statistics.median(found) for form, found in times.items()}
            nbytes = {"int8": sum(w.nbytes for w in tiles), "float": sum(w.nbytes for w in packed)}
            multiplications = rows * outputs * columns * args.matrices
            results.append(
                {
                    "kind": name,
                    "rows": rows,
                    "ms": {form: 1e3 * median for form, median in medians.items()},
                    "gb_per_s": {form: nbytes[form] / medians[form] / 1e9 for form in nbytes if form in medians},
                    "tera_operations_per_s": {form: 2e-12 * multiplications / m for form, m in medians.items()},
                }
            )
            shown = ", ".join(f"{form} {1e3 * median:.1f} ms" for form, median in medians.items())
            print(f"{name} {rows:4} rows: {shown}; int8 {nbytes['int8'] / medians['int8'] / 1e9:.1f} GB/s", flush=True)
    report = {
        "shape": [outputs, columns],
        "matrices": args.matrices,
        "cores": os.cpu_count(),
        "read_bytes_per_second": statistics.median(bandwidth),
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "results": results,
    }
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
