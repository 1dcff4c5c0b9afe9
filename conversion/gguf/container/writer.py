"""Writing GGUF files: the header at once, then the tensors piece by piece, in the order in which the header lists them.

The types and shapes of all tensors are known before the first is converted, so that nothing is written twice and no
tensor has to be in memory in full. Format: docs/gguf.md of ggml, version 3, little-endian.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np

from conversion.weights.ggml_types import GGMLType
from conversion.weights.tensor_source import Array

ALIGNMENT = 32
"""Tensors begin at multiples of it; the format's default, which needs no metadata."""

_STRING, _ARRAY = 8, 9
_SCALARS: dict[str, tuple[int, str]] = {
    "uint8": (0, "<B"),
    "int8": (1, "<b"),
    "uint16": (2, "<H"),
    "int16": (3, "<h"),
    "uint32": (4, "<I"),
    "int32": (5, "<i"),
    "float32": (6, "<f"),
    "bool": (7, "<?"),
    "uint64": (10, "<Q"),
    "int64": (11, "<q"),
    "float64": (12, "<d"),
}
"""Number and struct code of the value types, by the names of numpy."""


@dataclass(frozen=True, kw_only=True)
class NewTensor:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    """Slowest axis first."""
    type: GGMLType

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape[:-1]) * self.type.row_bytes(self.shape[-1])


class GGUFWriter:
    """Writes one file. The header is written on construction; then call `write` for each tensor in order, and `finish`.

    Args:
      file: binary, at its start. The caller closes it.
      metadata: by key. Numpy scalars and arrays keep their types. A Python int becomes uint32 (int32 if negative, 64
        bits if needed), a float float32, and lists likewise; lists of strings become arrays of strings.
      tensors: all tensors, in the order in which they will be written.
    Raises:
      ValueError: two tensors have the same name, a row is not a whole number of blocks, or a value has no type in GGUF.
    """

    def __init__(self, file: BinaryIO, metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> None:
        self._file = file
        self._waiting = {tensor.name: tensor.nbytes for tensor in tensors}
        self._missing = 0
        """Bytes missing from the current tensor."""
        if len(self._waiting) != len(tensors):
            raise ValueError("two tensors have the same name")
        file.write(header_bytes(metadata, tensors))

    def write(self, name: str, data: Array) -> None:
        """The next bytes of a tensor: C-contiguous, of any type.

        Raises:
          ValueError: another tensor is due, or these are more bytes than it has.
        """
        if self._missing == 0:
            due = next(iter(self._waiting), None)
            if name != due:
                raise ValueError(f"tensor {name!r} was given where {due!r} is due")
            self._begun, self._missing = name, self._waiting.pop(name)
        raw = memoryview(data.reshape(-1).view(np.uint8))
        if name != self._begun or len(raw) > self._missing:
            raise ValueError(f"{len(raw)} bytes of {name!r} where {self._begun!r} lacks {self._missing}")
        self._file.write(raw)
        self._missing -= len(raw)
        if self._missing == 0:
            self._file.write(bytes(-self._file.tell() % ALIGNMENT))

    def finish(self) -> None:
        """Check that all tensors were written.

        Raises:
          ValueError: some were not.
        """
        if self._missing or self._waiting:
            raise ValueError(f"{len(self._waiting) + bool(self._missing)} tensors were not written in full")


def header_bytes(metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> bytes:
    """Everything in a file before its first tensor. Raises: see `GGUFWriter`."""
    parts = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), _value(key, value)]
    offset = 0
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts.append(_string(tensor.name))
        parts.append(struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, tensor.type.id, offset))
        offset += -(-tensor.nbytes // ALIGNMENT) * ALIGNMENT
    size = sum(map(len, parts))
    return b"".join([*parts, bytes(-size % ALIGNMENT)])


def file_size(metadata: Mapping[str, Any], tensors: Sequence[NewTensor]) -> int:
    """Bytes that a file of these will have."""
    data = sum(-(-tensor.nbytes // ALIGNMENT) * ALIGNMENT for tensor in tensors)
    return len(header_bytes(metadata, tensors)) + data


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _value(key: str, value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, np.ndarray):
        return _number_array(key, cast("Array", value))
    if isinstance(value, Sequence):
        items = cast("Sequence[Any]", value)
        if all(isinstance(item, str) for item in items):
            head = struct.pack("<IIQ", _ARRAY, _STRING, len(items))
            return head + b"".join(_string(item) for item in items)
        return _number_array(key, np.asarray(items, _array_type(items)))
    kind = str(value.dtype) if isinstance(value, np.generic) else _scalar_type(value)
    if kind not in _SCALARS:
        raise ValueError(f"{key}: {value!r} has no type in GGUF")
    number, code = _SCALARS[kind]
    return struct.pack("<I", number) + struct.pack(code, value)


def _number_array(key: str, array: Array) -> bytes:
    if array.ndim != 1 or str(array.dtype) not in _SCALARS:
        raise ValueError(f"{key}: an array of shape {array.shape} and type {array.dtype} has no type in GGUF")
    number, _ = _SCALARS[str(array.dtype)]
    return struct.pack("<IIQ", _ARRAY, number, array.size) + array.astype(array.dtype.newbyteorder("<")).tobytes()


def _scalar_type(value: Any) -> str:
    match value:
        case bool():
            return "bool"
        case int():
            return "uint32" if 0 <= value < 2**32 else "int32" if -(2**31) <= value < 0 else _wide(value)
        case float():
            return "float32"
        case _:
            return type(value).__name__


def _wide(value: int) -> str:
    return "uint64" if value >= 0 else "int64"


def _array_type(items: Sequence[Any]) -> str | None:
    """int32, float32 or bool for a Python list; None leaves it to numpy."""
    kinds = {type(item) for item in items}
    return {frozenset({bool}): "bool", frozenset({int}): "int32"}.get(
        frozenset(kinds), "float32" if kinds <= {int, float} else None
    )
