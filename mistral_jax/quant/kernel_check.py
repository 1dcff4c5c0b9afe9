"""Checking a GPU kernel on the device that is to run it, before a model relies on it.

Kernels are compiled by other compilers than XLA's own, for devices that differ; a program that nobody can run is found
at start, and one that computes something else is found as well.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mistral_jax.quant.placement import Placement

_log = logging.getLogger(__name__)


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
