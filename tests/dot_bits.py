"""For which shapes the bits of a product depend on how many rows are computed together, on the machine at hand.

    python -m tests.dot_bits [--shapes 20] [--seed 0]

Random shapes of several kinds are multiplied with 2, 3, 8 and 16 rows and compared with the same rows among 64. The
last kind is that of `conversion.weights.stored_shapes.storable_shape`, which every matrix of a model is stored in: it
must have none. The others show what the rule is for, and may differ from processor to processor.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
from jax import lax

from conversion.weights.stored_shapes import storable_shape
from mistral_jax.quant.dot import precision_of

ROWS, MANY = (2, 3, 8, 16), 64
Shape = tuple[int, int]
"""Outputs and terms: [N, K]."""


@jax.jit
def _plain_dot(x: jax.Array, weight: jax.Array) -> jax.Array:
    """The product as it is, of any shape."""
    axes = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, weight, axes, precision=precision_of(x), preferred_element_type=jnp.float32)


def differing_rows(
    shape: Shape,
    dtype: str,
    seed: int,
    *,
    product: Callable[[jax.Array, jax.Array], jax.Array] = _plain_dot,
    rows: tuple[int, ...] = ROWS,
    many: int = MANY,
) -> list[int]:
    """Those of `rows` with which some value has other bits than among `many`."""
    rng = np.random.default_rng(seed)
    x = jnp.asarray(rng.standard_normal((many, shape[1])), dtype)
    weight = jnp.asarray(rng.standard_normal(shape), dtype)
    among = np.asarray(product(x, weight))
    return [count for count in rows if not np.array_equal(product(x[:count], weight), among[:count])]


def kinds(rng: np.random.Generator) -> dict[str, Callable[[], Shape]]:
    """Generators of shapes, by what they have in common."""

    def number(low: int, high: int, multiple: int = 1) -> int:
        return int(rng.integers(low, high // multiple + 1)) * multiple

    return {
        "K and N multiples of 16 below 64": lambda: (number(1, 63, 16), number(1, 63, 16)),
        "K = 16, N a multiple of 256": lambda: (number(1, 4096, 256), 16),
        "N from 1 to 15, any K": lambda: (number(1, 15), number(1, 1024)),
        "N odd, above 1,000": lambda: (number(500, 2000) * 2 + 1, number(64, 1024)),
        "stored: what becomes of any shape": lambda: storable_shape(number(1, 2048), number(1, 2048)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", type=int, default=20, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    processor = Path("/proc/cpuinfo")
    amx = "with AMX" if processor.is_file() and " amx_" in processor.read_text() else "no AMX seen"
    print(
        f"{platform.machine()}, {amx}, jax {jax.__version__}, jaxlib {jaxlib.__version__}; rows {ROWS} beside {MANY}\n"
    )
    print("| shapes [N, K] | bfloat16: differ | float32: differ | an example |\n|---|---|---|---|")
    rng = np.random.default_rng(options.seed)
    for name, draw in kinds(rng).items():
        counts, example = [], ""
        for dtype in ("bfloat16", "float32"):
            shapes = [draw() for _ in range(options.shapes)]
            found = [(shape, rows) for i, shape in enumerate(shapes) if (rows := differing_rows(shape, dtype, i))]
            counts.append(f"{len(found)} of {len(shapes)}")
            example = example or (f"{dtype} {list(found[0][0])}, rows {found[0][1]}" if found else "")
        print(f"| {name} | {' | '.join(counts)} | {example} |", flush=True)


if __name__ == "__main__":
    main()
