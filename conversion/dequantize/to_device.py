"""Packed tensors of a file to float arrays on a device."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from conversion.dequantize.unpack import UNPACKABLE, unpack
from conversion.ggml_types import GGMLType
from conversion.tensor_source import Array, aligned_empty

Pieces = Iterable[tuple[int, Array | jax.Array]]
"""Values of some blocks [n, block_size], or plain values [n], and how many blocks or values come before them."""

if TYPE_CHECKING:
    # jax.Device is this class, under a name that type checkers take for a variable.
    from jaxlib._jax import Device

_PIECE = 1 << 20
"""Values at a time where a tensor is unpacked in pieces: they stay in the cache until they are copied to their place."""
_GROUP = 16
"""Blocks in a row for `gguf.quants`, which works on 16 rows at a time: its intermediates stay in the cache as well."""


def dequantize(
    raw: Array, kind: GGMLType, *, dtype: DTypeLike = jnp.float32, device: Device | None = None
) -> jax.Array:
    """The values of a tensor: uint8 [..., row_bytes] on the host -> dtype [..., columns] on the device.

    The values are those of `gguf.quants.dequantize`, bit for bit in float32, rounded once to `dtype`. The packed bytes go to the
    device and are unpacked there, for the types in `UNPACKABLE`. The others are unpacked on the host, in pieces of a million
    values, each of which goes to its place on the device before the next is made: the host never holds the tensor.

    On a CPU, `raw` must not change until the result is ready.
    The tensors of type NVFP4 come with a second one, `<name>.scale`, by which the caller multiplies.

    Raises:
      ValueError: the bytes are not uint8, or a row is no whole number of blocks.
    """
    if raw.dtype != np.uint8 or raw.ndim == 0 or raw.shape[-1] % kind.block_bytes:
        raise ValueError(
            f"packed rows of {kind.name} must be uint8 [..., n * {kind.block_bytes}], not {raw.dtype} {list(raw.shape)}"
        )
    shape = (*raw.shape[:-1], raw.shape[-1] // kind.block_bytes * kind.block_size)
    target = next(iter(jnp.empty(()).devices())) if device is None else device
    if kind.dtype is not None:
        # The host relabels bytes for nothing.
        raw = np.ascontiguousarray(raw).view(kind.dtype)

    def unpacked(part: Array) -> jax.Array:
        return _unpack(jax.device_put(part, device), kind, jnp.dtype(dtype))

    on_cpu = target.platform == "cpu"
    if kind.name in UNPACKABLE and (not on_cpu or raw.nbytes * 8 <= _PIECE * kind.bits_per_weight):
        return unpacked(raw)
    values_of = unpacked if kind.name in UNPACKABLE else partial(_unpacked_on_host, kind=kind)
    # Blocks [n, block_bytes] or plain values [n].
    units = raw.reshape(-1, kind.block_bytes) if kind.dtype is None else raw.reshape(-1)
    starts = range(0, len(units), step := _PIECE // kind.block_size)
    pieces = ((start, values_of(units[start : start + step])) for start in starts)
    return (_collect_on_cpu if on_cpu else _collect)(pieces, shape, jnp.dtype(dtype), device)


@partial(jax.jit, static_argnums=(1, 2))
def _unpack(placed: jax.Array, kind: GGMLType, dtype: np.dtype[Any]) -> jax.Array:
    # A copy: the result would otherwise be the caller's own memory where the type stays as it is.
    return unpack(placed, kind, dtype) if kind.dtype is None else jnp.array(placed, dtype, copy=True)


def _collect_on_cpu(pieces: Pieces, shape: tuple[int, ...], dtype: np.dtype[Any], device: Device | None) -> jax.Array:
    """Pieces side by side in memory of NumPy's, which asks for huge pages.

    What XLA allocates comes in pages of 4 KiB. For a large array the system takes longer to hand these out than unpacking takes.
    """
    values = aligned_empty(shape, dtype)
    for start, piece in pieces:
        values.reshape(-1, *piece.shape[1:])[start : start + len(piece)] = piece
    return jax.device_put(values, device)


def _collect(pieces: Pieces, shape: tuple[int, ...], dtype: np.dtype[Any], device: Device | None) -> jax.Array:
    """Pieces side by side in one array on the device."""
    values = jnp.zeros(shape, dtype, device=device)
    for start, piece in pieces:
        values = _place(values, jax.device_put(piece, device), start)
    return values


@partial(jax.jit, donate_argnums=0)
def _place(values: jax.Array, piece: jax.Array, start: int) -> jax.Array:
    flat = values.reshape(-1, *piece.shape[1:])
    return jax.lax.dynamic_update_slice_in_dim(flat, piece.astype(values.dtype), start, 0).reshape(values.shape)


def _unpacked_on_host(units: Array, kind: GGMLType) -> Array:
    """float32 values of blocks [n, block_bytes] or plain values [n]."""
    # Here, because the package takes longer to import than to be used.
    import gguf

    # Numbers out of range become infinite, and infinite scales make values that are no numbers: no affair of the console's.
    with np.errstate(over="ignore", invalid="ignore"):
        if kind.dtype is not None:
            # F64 and I64, which JAX has in 64-bit mode only.
            return units.astype(np.float32)
        values = np.empty((len(units), kind.block_size), np.float32)
        whole = len(units) // _GROUP * _GROUP
        for part, row in ((slice(whole), _GROUP), (slice(whole, None), 1)):
            rows = units[part].reshape(-1, row * kind.block_bytes)
            if len(rows):
                unpacked = gguf.dequantize(rows, gguf.GGMLQuantizationType(kind.id))
                values[part] = unpacked.reshape(-1, kind.block_size)
    return values
