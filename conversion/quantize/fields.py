"""What the quantisers of all types share: magnitudes, reciprocals, codes side by side in a byte, the bytes of a
scale."""

from __future__ import annotations

from functools import reduce

import jax
import jax.numpy as jnp
from jax import lax

_LEAST = 2.0**-126
"""The smallest normal float32. Arithmetic on a CPU may flush subnormal numbers to zero, so we always do."""


def magnitude(x: jax.Array) -> jax.Array:
    """The largest magnitude of the last axis. A NaN or an infinity is never lost: [..., n] -> [...].

    The bits of floats are ordered as integers, with NaN at the top; maxima of floats may drop it.
    """
    bits = lax.bitcast_convert_type(x, jnp.int32) & jnp.int32(0x7FFFFFFF)
    return lax.bitcast_convert_type(bits.max(-1), jnp.float32)


def reciprocal(x: jax.Array) -> jax.Array:
    """1 / x, and 0 for 0 (and for subnormal numbers)."""
    usable = jnp.abs(x) >= _LEAST
    return jnp.where(usable, 1 / jnp.where(usable, x, 1), 0)


def half_bytes(scale: jax.Array) -> jax.Array:
    """Scales as they stand in a block, little-endian float16: [...] -> uint8 [..., 2]."""
    return lax.bitcast_convert_type(scale.astype(jnp.float16), jnp.uint8)


def join_fields(codes: jax.Array, width: int) -> jax.Array:
    """Codes of `width` bits side by side in a byte, the first lowest: uint8 [..., 8 / width, n] -> [..., n]."""
    return reduce(jnp.bitwise_or, [codes[..., i, :] << (i * width) for i in range(codes.shape[-2])])


def as_row(*fields: jax.Array) -> jax.Array:
    """The fields of each block one after another: uint8 [blocks, ...] each -> [blocks, block_bytes]."""
    return jnp.concatenate([field.reshape(field.shape[0], -1) for field in fields], -1)
