"""Compares the weights of two checkpoints of any formats, tensor by tensor.

Two tensors are in memory at a time, as the files store them; they are compared a piece at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from conversion.weights.decoder_weights import EMBEDDING, HEAD
from conversion.weights.tensor_source import Array, TensorSource

_PIECE_VALUES = 2**20
"""Number of values that are compared at a time: a few float64 copies of them stay small."""


@dataclass(frozen=True, kw_only=True)
class TensorDifference:
    """How a tensor of B differs from A's tensor of the same name."""

    name: str
    """The Hugging Face name."""
    shape: tuple[int, ...]
    max_abs: float
    """Largest absolute difference of two values; NaN if either tensor has NaNs."""
    rms: float
    """Root of the mean square of the differences."""
    relative_rms: float
    """`rms` divided by the root mean square of A's values."""

    @property
    def equal(self) -> bool:
        """Whether no value differs."""
        return self.max_abs == 0


@dataclass(frozen=True, kw_only=True)
class TensorMismatch:
    """A tensor that one checkpoint lacks, or that has another shape in B."""

    name: str
    shape_a: tuple[int, ...] | None
    """None: A has no such tensor."""
    shape_b: tuple[int, ...] | None

    def __str__(self) -> str:
        if self.shape_a is None or self.shape_b is None:
            return f"{self.name} is only in {'A' if self.shape_b is None else 'B'}"
        return f"{self.name} is {list(self.shape_a)} in A and {list(self.shape_b)} in B"


class TiedSource:
    """A source whose output matrix is the embedding if it has none of its own."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self._names = tuple(source.names())

    def stored(self, name: str) -> str | None:
        """The name under which a tensor is stored; None if there is none."""
        if name in self._names:
            return name
        return EMBEDDING if name == HEAD and EMBEDDING in self._names else None

    def names(self) -> tuple[str, ...]:
        return self._names

    def shape(self, name: str) -> tuple[int, ...] | None:
        stored = self.stored(name)
        return None if stored is None else self._source.shape(stored)

    def read(self, name: str) -> Array:
        """A tensor in its stored type; packed ones as float32."""
        stored = self.stored(name)
        assert stored is not None
        out = np.empty(self._source.shape(stored), self._source.dtype(stored))
        self._source.read_into(stored, out)
        return out


def match_names(a: TiedSource, b: TiedSource) -> tuple[list[str], list[TensorMismatch]]:
    """Names of the tensors that can be compared, in the order of A, and the mismatches of the others."""
    names = [*a.names(), *(name for name in b.names() if a.stored(name) is None)]
    comparable: list[str] = []
    mismatched: list[TensorMismatch] = []
    for name in names:
        shape_a, shape_b = a.shape(name), b.shape(name)
        if shape_a is not None and shape_a == shape_b:
            comparable.append(name)
        else:
            mismatched.append(TensorMismatch(name=name, shape_a=shape_a, shape_b=shape_b))
    return comparable, mismatched


def compare_tensors(a: TiedSource, b: TiedSource, names: Sequence[str]) -> Iterator[TensorDifference]:
    """Yield the differences of the tensors of these names, one by one."""
    for name in names:
        yield compare_arrays(name, a.read(name), b.read(name))


def compare_arrays(name: str, a: Array, b: Array) -> TensorDifference:
    """How `b` differs from `a`: arrays of the same shape, and of any float types."""
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    largest, squares, squares_a = 0.0, 0.0, 0.0
    for first in range(0, flat_a.size, _PIECE_VALUES):
        # In float64, where squares do not overflow, and their sum does not lose digits.
        x = flat_a[first : first + _PIECE_VALUES].astype(np.float64)
        y = flat_b[first : first + _PIECE_VALUES].astype(np.float64)
        difference = np.subtract(x, y, where=x != y, out=np.zeros(x.size))  # equal infinities do not differ
        largest = float(np.maximum(largest, np.max(np.abs(difference))))
        squares += float(np.dot(difference, difference))
        squares_a += float(np.dot(x, x))
    rms = math.sqrt(squares / max(1, flat_a.size))
    scale = math.sqrt(squares_a / max(1, flat_a.size))
    relative = rms / scale if scale else (0.0 if rms == 0 else math.inf)
    return TensorDifference(name=name, shape=a.shape, max_abs=largest, rms=rms, relative_rms=relative)
