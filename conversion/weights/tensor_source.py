"""Where tensors come from, whatever the file format: names, shapes, types, and reading one into memory that the caller
owns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np

from conversion.weights.ggml_types import GGMLType

Array = np.ndarray[Any, np.dtype[Any]]


class WeightFileError(ValueError):
    """A weight file is missing, broken, or of a kind that is not implemented."""


class TensorSource(Protocol):
    """A set of named tensors under Hugging Face names, on disk. Nothing is read before `read_into`."""

    def names(self) -> Iterable[str]: ...

    def shape(self, name: str) -> tuple[int, ...]: ...

    def dtype(self, name: str) -> np.dtype[Any]: ...

    def read_into(self, name: str, out: Array) -> None:
        """Fill `out`, C-contiguous and of the tensor's shape, converting to its type.

        Host memory beyond `out` stays within a few MiB.
        """
        ...


@runtime_checkable
class PackedSource(TensorSource, Protocol):
    """A source whose tensors may be stored as packed blocks, which can be read as they are."""

    def kind(self, name: str) -> GGMLType:
        """The type that a tensor is stored in."""
        ...

    def read_packed(self, name: str, out: Array) -> None:
        """Fill `out`, uint8 [rows, row_bytes] and C-contiguous, with a matrix's blocks."""
        ...


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """Uninitialised memory aligned to 64 bytes, which JAX's CPU backend adopts without a copy."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
