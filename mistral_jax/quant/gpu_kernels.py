"""What the kernels for GPUs share: where they run, their product of tiles, and the check that comes before their use.

Kernels are in Pallas for Triton, compiled by another compiler than XLA's own for devices that differ. So each is run on
the device and compared with its plain form before a model relies on it (`agrees`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl

from mistral_jax.quant.dot import precision_of
from mistral_jax.quant.placement import Placement

try:
    from jax.experimental.pallas import triton as triton  # for the kernels' modules
except ImportError:  # JAX comes without it, as on Windows
    triton = None

_log = logging.getLogger(__name__)

_TILES = {16: 16, 128: 32}
"""Rows of a tile of a product, by the most rows. Tensor cores take 16 at least. Hopper has other instructions for tiles
of 64 rows and more: decode steps keep to those that all GPUs have, and so to one order of sums."""

_LARGE_TILE = 128
"""Rows of a tile of prefill, where weights are read or unpacked once for each tile."""

OUTPUTS = 64
"""Outputs of a tile of a product, or half of that where a matrix has few."""

FEW_TILES = 256
"""Instances of a product's kernel below which a tile has fewer outputs, and below which columns are divided: about two
for each core of the largest GPUs."""


class Tiling(NamedTuple):
    """How a product of `rows` with a matrix of `all_outputs` is divided into instances of a kernel, which take the
    matrix's columns in `steps`. How many steps an instance takes depends on the matrix alone."""

    rows: int
    all_outputs: int
    steps: int

    @property
    def tile(self) -> int:
        """Rows of a tile."""
        return next((tile for most, tile in _TILES.items() if most >= self.rows), _LARGE_TILE)

    @property
    def outputs(self) -> int:
        """Outputs of a tile."""
        return OUTPUTS if pl.cdiv(self.all_outputs, OUTPUTS) >= FEW_TILES else OUTPUTS // 2

    @property
    def part(self) -> int:
        """Steps that an instance takes."""
        tiles = pl.cdiv(self.all_outputs, self.outputs)
        return pl.cdiv(self.steps, max(1, round(FEW_TILES / tiles)))

    def multiplied(
        self, kernel: Callable[..., None], *arrays: jax.Array, name: str, stages: int, interpret: bool
    ) -> Any:
        """Run a kernel that stores the part of the sums of its program ids (tile of rows, tile of outputs, part):
        float32 [rows, all_outputs]."""
        assert triton is not None
        parts = pl.cdiv(self.steps, self.part)
        call: Any = pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((parts, self.rows, self.all_outputs), jnp.float32),
            # Tiles of rows follow one another first, so that they find the weights in the cache.
            grid=(pl.cdiv(self.rows, self.tile), pl.cdiv(self.all_outputs, self.outputs), parts),
            compiler_params=triton.CompilerParams(num_warps=8 if self.tile == _LARGE_TILE else 4, num_stages=stages),
            interpret=interpret,
            name=name,
        )
        return _sum_in_order(call(*arrays))


def run_kernel(run: Callable[..., Any], *arguments: Any) -> Any:
    """Run a kernel where the program runs: on a GPU, or on a CPU in Pallas' interpreter, for tests.

    Args:
      run: takes the arguments, and `interpret`, as of `pallas_call`.
    """
    return lax.platform_dependent(*arguments, cpu=partial(run, interpret=True), default=partial(run, interpret=False))


def tile_dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """`x` [m, k] times `y` [n, k] transposed, inside a kernel: float32 [m, n]."""
    axes = (((1,), (1,)), ((), ()))
    return lax.dot_general(x, y, axes, precision=precision_of(x), preferred_element_type=jnp.float32)


def _sum_in_order(parts: jax.Array) -> jax.Array:
    """[P, ...] -> [...]: the sum over the first axis, term by term. The order of XLA's own depends on the shape."""
    total = parts[0]
    for number in range(1, parts.shape[0]):
        total = total + parts[number]
    return total


def agrees(
    name: str,
    kernel: Callable[..., jax.Array],
    plain: Callable[..., jax.Array],
    arguments: Any,
    *,
    placement: Placement,
    dtype: jax.typing.DTypeLike,
) -> bool:
    """Run a kernel and its plain form on a device, and compare.

    Args:
      name: for the log, which says why the kernel is not used.
      arguments: a pytree of host arrays, the first arguments' values.
      dtype: in which both compute; it bounds how far they may differ.
    """
    tolerance = max(4 * float(jnp.finfo(dtype).eps), 1e-5)
    try:
        placed = placement.put(arguments)
        found, expected = (np.asarray(jax.jit(form)(*placed), np.float32) for form in (kernel, plain))
    except Exception as error:  # whatever a compiler or driver raises for a device that it does not support
        _log.info("%s: without its kernel, which %s cannot run: %s", name, placement.device, error)
        return False
    difference = float(np.max(np.abs(found - expected)) / np.max(np.abs(expected)))
    if difference <= tolerance:  # not if it is NaN
        return True
    _log.warning(
        "%s: without its kernel, which on %s differs from the plain form by %.1e; expected at most %.1e. "
        "Please report this with the names of the GPU and the versions of JAX and the driver.",
        name,
        placement.device,
        difference,
        tolerance,
    )
    return False
