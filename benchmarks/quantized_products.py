"""Forms of the product of activations with packed weights, timed on JAX's default device beside the plain bfloat16 dot.

usage: python benchmarks/quantized_products.py [--kinds Q8_0,Q4_0,Q4_K,Q6_K] [--rows 1,2,8,64,512] [--output FILE.json]

- used: what `mistral_jax.quant.product` chooses on this device.
- fused: unpack, multiply and add up in one pass over the packed bytes.
- unpack-dot: unpack the whole matrix, then a dot.
- planes: as fused, but scales and quants split beforehand into arrays of their own, which a device can read in wide
  words.
- bfloat16: the dot with weights that were never packed.
Times are medians; GB/s counts the bytes of the weights as each form holds them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from conversion.dequantize import unpack
from conversion.weights.ggml_types import BY_NAME
from mistral_jax.quant import product
from mistral_jax.quant.array import QuantizedArray
from mistral_jax.quant.dot import dot
from serving.commands.bench import copy_bandwidth

SHAPE = (28672, 4096)
"""[out, in] of the largest matrix of a 7B."""


def planes_q8_0(raw: jax.Array) -> tuple[jax.Array, ...]:
    blocks = raw.reshape(raw.shape[0], -1, 34)
    scales = lax.bitcast_convert_type(blocks[..., :2], jnp.float16)
    return scales, lax.bitcast_convert_type(blocks[..., 2:], jnp.int8)


def product_q8_0(x: jax.Array, scales: jax.Array, values: jax.Array) -> jax.Array:
    x = x.astype(jnp.float32).reshape(x.shape[0], 1, -1, 32)
    return jnp.sum(x * (values.astype(jnp.float32) * scales.astype(jnp.float32)[..., None])[None], axis=(-1, -2))


def planes_q4_0(raw: jax.Array) -> tuple[jax.Array, ...]:
    blocks = raw.reshape(raw.shape[0], -1, 18)
    words = lax.bitcast_convert_type(blocks[..., 2:].reshape(*blocks.shape[:2], 4, 4), jnp.uint32)
    return lax.bitcast_convert_type(blocks[..., :2], jnp.float16), words


def product_q4_0(x: jax.Array, scales: jax.Array, words: jax.Array) -> jax.Array:
    # Word w of a block holds the elements 4w to 4w + 3 in the low halves of its bytes, and 16 + 4w to 16 + 4w + 3 in
    # the high.
    x = x.astype(jnp.float32).reshape(x.shape[0], 1, -1, 2, 4, 4)  # [M, 1, block, half, word, byte]
    shifts = jnp.arange(4, dtype=jnp.uint32) * 8 + jnp.arange(2, dtype=jnp.uint32)[:, None] * 4  # [half, byte]
    nibbles = (words[:, :, None, :, None] >> shifts[:, None, :]) & 15
    weights = (nibbles.astype(jnp.float32) - 8) * scales.astype(jnp.float32)[..., None, None, None]
    return jnp.sum(x * weights[None], axis=(-1, -2, -3, -4))


PLANES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "Q8_0": (planes_q8_0, product_q8_0),
    "Q4_0": (planes_q4_0, product_q4_0),
}


def median_time(run: Callable[[], jax.Array], repeats: int = 20) -> float:
    run().block_until_ready()
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        run().block_until_ready()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kinds", default="Q8_0,Q4_0,Q4_K,Q6_K")
    parser.add_argument("--rows", default="1,2,8,64,512")
    parser.add_argument("--shape", default="x".join(map(str, SHAPE)))
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    out, columns = (int(n) for n in args.shape.split("x"))
    rng = np.random.default_rng(0)
    plain = jnp.asarray(rng.standard_normal((out, columns), np.float32), jnp.bfloat16)
    results: list[dict[str, Any]] = []

    def record(form: str, kind: str, rows: int, nbytes: int, run: Callable[[], jax.Array]) -> None:
        seconds = median_time(run)
        results.append(
            {"form": form, "kind": kind, "rows": rows, "ms": seconds * 1e3, "gb_per_s": nbytes / seconds / 1e9}
        )
        print(
            f"{form:>11} {kind:>9} {rows:>4} rows {seconds * 1e3:>9.3f} ms {nbytes / seconds / 1e9:>8.1f} GB/s",
            flush=True,
        )

    for rows in (int(n) for n in args.rows.split(",")):
        x = jnp.asarray(rng.standard_normal((rows, columns), np.float32), jnp.bfloat16)
        bfloat16 = jax.jit(dot)
        record("bfloat16", "bfloat16", rows, plain.nbytes, lambda x=x, f=bfloat16: f(x, plain))
        for name in args.kinds.split(","):
            kind = BY_NAME[name]
            blocks = rng.integers(0, 256, (out, columns // kind.block_size, kind.block_bytes), dtype=np.uint8)
            raw = jnp.asarray(blocks.reshape(out, -1))
            forms: dict[str, tuple[Callable[..., jax.Array], tuple[jax.Array, ...]]] = {
                "used": (
                    jax.jit(lambda x, raw, kind=kind: product.packed_product(x, QuantizedArray(raw, kind))),
                    (raw,),
                ),
                "unpack-dot": (
                    jax.jit(lambda x, raw, kind=kind: dot(x, lax.optimization_barrier(unpack(raw, kind, x.dtype)))),
                    (raw,),
                ),
            }
            if rows <= 8:
                forms["fused"] = (jax.jit(lambda x, raw, kind=kind: product.fused_product(x, raw, kind)), (raw,))
                if name in PLANES:
                    split, multiply = PLANES[name]
                    forms["planes"] = (jax.jit(multiply), jax.jit(split)(raw))
            for form, (run, weights) in forms.items():
                nbytes = sum(weight.nbytes for weight in weights)
                record(form, name, rows, nbytes, lambda x=x, run=run, weights=weights: run(x, *weights))
    device = jax.devices()[0]
    report = {
        "device": device.device_kind,
        "platform": device.platform,
        "shape": [out, columns],
        "copy_bytes_per_second": copy_bandwidth(device),
        "versions": {name: version(name) for name in ("jax", "jaxlib")},
        "results": results,
    }
    if args.output:
        args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
