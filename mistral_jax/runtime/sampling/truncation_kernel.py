"""The edges of a truncated distribution, each found by one kernel for NVIDIA GPUs, in Pallas for Triton.

`mistral_jax.runtime.sampling.truncation` bisects the bits of a float in 31 or 32 steps. For XLA each step is a few
kernels; here all of them are one, an instance for each row, which holds the row in registers if the vocabulary is not
too large. A row's result depends on its own values alone.

Axis letters: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from mistral_jax.quant.gpu_kernels import agrees, run_kernel, triton
from mistral_jax.quant.placement import Placement
from mistral_jax.runtime.sampling import truncation
from mistral_jax.runtime.sampling.truncation import ordered, ordered_inverse

_HELD_AT_ONCE = 2**15
"""Values of a row that an instance holds in registers, 32 of each thread; longer rows are read again in each step."""


def kth_largest(x: jax.Array, k: jax.Array) -> jax.Array:
    """See `mistral_jax.runtime.sampling.truncation.kth_largest`: the same values."""
    return _by_row(_kth_largest, x, k, name="kth_largest")


def nucleus_edge(probabilities: jax.Array, top_p: jax.Array) -> jax.Array:
    """See `mistral_jax.runtime.sampling.truncation.nucleus_edge`; sums have an order of their own."""
    return _by_row(_nucleus_edge, probabilities, top_p, name="nucleus_edge")


Pieces = Callable[[Callable[[jax.Array, jax.Array], jax.Array]], jax.Array]
"""Sums a function of a row's values and of which of them exist over all pieces of the row."""


def _by_row(
    kernel: Callable[[Pieces, jax.Array], jax.Array], x: jax.Array, wanted: jax.Array, *, name: str
) -> jax.Array:
    """Run a kernel for each row: [B, V], [B, 1] -> float32 [B, 1]."""

    def run(x: jax.Array, wanted: jax.Array, *, interpret: bool) -> jax.Array:
        width = min(pl.next_power_of_2(x.shape[1]), _HELD_AT_ONCE)
        call: Any = pl.pallas_call(
            partial(_kernel, kernel=kernel, width=width, vocab_size=x.shape[1]),
            out_shape=jax.ShapeDtypeStruct(wanted.shape, jnp.float32),
            grid=(x.shape[0],),
            compiler_params=triton.CompilerParams(num_warps=max(1, min(32, width // 512)), num_stages=1),
            interpret=interpret,
            name=name,
        )
        return call(x, wanted)

    return run_kernel(run, x, wanted)


def _kernel(
    x_ref: Any,
    wanted_ref: Any,
    edge_ref: Any,
    *,
    kernel: Callable[[Pieces, jax.Array], jax.Array],
    width: int,
    vocab_size: int,
) -> None:
    row = pl.program_id(0)

    def piece(number: Any) -> tuple[jax.Array, jax.Array]:
        column = number * width + lax.broadcasted_iota(jnp.int32, (width,), 0)
        exists = column < vocab_size
        return triton.load(x_ref.at[row, column], mask=exists, other=0), exists

    count = pl.cdiv(vocab_size, width)
    held = piece(0) if count == 1 else None

    def total(function: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        if held is not None:
            return jnp.sum(function(*held))
        first = jnp.sum(function(*piece(0)))
        return lax.fori_loop(1, count, lambda number, so_far: so_far + jnp.sum(function(*piece(number))), first)

    edge_ref[row, 0] = kernel(total, wanted_ref[row, 0])


def _kth_largest(total: Pieces, k: jax.Array) -> jax.Array:
    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        # The mean rounded up, without overflow.
        middle = (low >> 1) + (high >> 1) + ((low | high) & 1)
        reached = total(lambda x, exists: ((ordered(x) >= middle) & exists).astype(jnp.int32))
        return jnp.where(reached >= k, middle, low), jnp.where(reached >= k, high, middle - 1)

    limits = jnp.iinfo(jnp.int32)
    found, _ = lax.fori_loop(0, 32, halve, (jnp.int32(limits.min), jnp.int32(limits.max)))
    return ordered_inverse(found)


def _nucleus_edge(total: Pieces, top_p: jax.Array) -> jax.Array:
    def halve(_: int, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low + high + 1) >> 1
        edge = lax.bitcast_convert_type(middle, jnp.float32)
        mass = total(lambda x, exists: jnp.where((x >= edge) & exists, x, 0.0))
        return jnp.where(mass >= top_p, middle, low), jnp.where(mass >= top_p, high, middle - 1)

    # The bits of floats in [0, 1] are integers in the same order, below 2**30.
    found, _ = lax.fori_loop(0, 31, halve, (jnp.int32(0), jnp.int32(0x3F800000)))
    return lax.bitcast_convert_type(found, jnp.float32)


@lru_cache(maxsize=16)
def kernel_works(placement: Placement, vocab_size: int) -> bool:
    """Whether sampling finds its edges by these kernels: one GPU holds the model, and there they give what the plain
    form gives."""
    if not placement.is_one_gpu:
        return False
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, vocab_size)).astype(np.float32)
    k = np.array([[7], [vocab_size]], np.int32)
    weights = np.exp(4 * x)
    probabilities, top_p = weights / weights.sum(axis=1, keepdims=True), np.array([[0.9], [0.5]], np.float32)
    checks = (
        (kth_largest, truncation.kth_largest, (x, k)),
        (nucleus_edge, truncation.nucleus_edge, (probabilities, top_p)),
    )
    return all(
        agrees("sampling", kernel, plain, arguments, placement=placement, dtype=jnp.float32)
        for kernel, plain, arguments in checks
    )
