"""The header of one GGUF file: metadata and tensor table, every number checked against the size of the file before it
is used.

Nothing is allocated by announced sizes: values are skipped here, and decoded on access
(`conversion.gguf.container.metadata`). Layout: "GGUF", u32 version, u64 tensors, u64 keys; then each key with its typed
value; then each tensor's name, dimensions (innermost first), type and offset; then, at the next multiple of the
alignment, the data.
Source: docs/gguf.md of the ggml project, and ggml/src/gguf.cpp of llama.cpp for what it accepts.
"""

from __future__ import annotations

import math
import struct
import time
from dataclasses import dataclass
from typing import Any

from conversion.files.regular_file import shortened
from conversion.gguf.container.file_bytes import FileState, GGUFError, OpenedFile
from conversion.gguf.container.metadata import ARRAY, FORMATS, NAMES, STRING, Value, decode, string_runs
from conversion.gguf.container.not_gguf import what_it_is
from conversion.weights.ggml_types import BY_ID, GGMLType

VERSIONS = (2, 3)
DEFAULT_ALIGNMENT = 32
_MAX_DIMENSIONS = 4
# Far above what any model has, and low enough that a hostile file of any size is refused within a second.
_MAX_TENSORS = 2**16
_MAX_KEYS = 2**13
_MAX_STRINGS = 2**21
_MAX_NAME_BYTES = 2**16 - 1
_MAX_HEAD_BYTES = 2**28
# Bytes of the shortest entries: a length, a name of one byte, and the numbers after it.
_MIN_KEY_BYTES = 8 + 1 + 4 + 1
_MIN_TENSOR_BYTES = 8 + 1 + 4 + 4 + 8
_WINDOW = 2**18

_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")
_COUNTS = struct.Struct("<QQ")
_ARRAY_HEAD = struct.Struct("<IQ")
_TYPE_AND_OFFSET = struct.Struct("<IQ")
_FETCH_AGAIN = "Fetch it again; if that does not help, its maker must write it again"
_DIMENSIONS = tuple(struct.Struct(f"<{count}Q") for count in range(_MAX_DIMENSIONS + 1))
# Types that other programs write, or once wrote: known by name, so that users can look them up.
_OTHER_TYPES = {
    4: "Q4_2",
    5: "Q4_3",
    9: "Q8_1",
    15: "Q8_K",
    31: "Q4_0_4_4",
    32: "Q4_0_4_8",
    33: "Q4_0_8_8",
    36: "IQ4_NL_4_4",
    37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
    41: "Q1_0",
    42: "Q2_0",
}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor of a file."""

    name: str
    shape: tuple[int, ...]
    """In numpy's order, slowest axis first; a row, of whole blocks, lies along the last axis."""
    type_id: int
    """The number of its type, known to us or not."""
    nbytes: int
    """Bytes of its data; for an unknown type, up to the next tensor."""
    part: int
    """The part of a split file that it is in, from 0."""
    offset: int
    """Offset of its data in bytes from the beginning of that part."""

    @property
    def type(self) -> GGMLType:
        """
        Raises:
          GGUFError: the type is not implemented. `type_id` and `type_name` are valid in any case.
        """
        if self.type_id not in BY_ID:
            raise GGUFError(
                f"tensor {self.name!r} is of the tensor type {self.type_name}, which is not implemented; "
                "use a file of another quantisation, such as Q4_K_M or Q8_0"
            )
        return BY_ID[self.type_id]

    @property
    def type_name(self) -> str:
        """Such as "Q4_K"; for a type that is not implemented with its number."""
        kind = BY_ID.get(self.type_id)
        return kind.name if kind is not None else f"{_OTHER_TYPES.get(self.type_id, 'unknown')} (number {self.type_id})"

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return math.prod(self.shape[:-1])

    @property
    def row_bytes(self) -> int:
        """Bytes of a row. Raises GGUFError where the type is not implemented."""
        return self.type.row_bytes(self.shape[-1] if self.shape else 1)


@dataclass(frozen=True, kw_only=True)
class Header:
    """The header of one file."""

    version: int
    alignment: int
    values: dict[str, Value]
    """The position of each key's value."""
    tensors: dict[str, TensorInfo]
    data_start: int


_Row = tuple[int, str, tuple[int, ...], int, int]
"""The position of a tensor's entry, its name, shape, type and offset in the data."""


_recent: dict[tuple[str, FileState, int], Header] = {}
"""Headers read so far, oldest first: a start opens a file to describe it, to plan its memory and to load it, and each
time parsing takes milliseconds. A header holds positions, not values."""
_MOST_RECENT = 64
_SETTLED = 2 * 10**9
"""Nanoseconds since the last change after which a file's times are taken to show the next one."""


def read_header(file: OpenedFile, part: int = 0) -> Header:
    """The header of a file; read once for as long as the file stays as it is.

    Raises:
      GGUFError: the file is not a GGUF file, is of a version or byte order that is not implemented, or its header
        contradicts itself or the size of the file.
    """
    key = (str(file.path), file.state, part)
    header = _recent.get(key)
    if header is None:
        header = _HeadReader(file, part).header()
        *_, modified, changed = file.state
        if time.time_ns() - max(modified, changed) > _SETTLED:
            while len(_recent) >= _MOST_RECENT:
                _recent.pop(next(iter(_recent)), None)
            _recent[key] = header
    return header


class _HeadReader:
    """A position in the header of a file, with the bytes around it."""

    def __init__(self, file: OpenedFile, part: int) -> None:
        self._file = file
        self._part = part
        self._position = 0
        self._window = b""
        self._window_start = 0

    def header(self) -> Header:
        version = self._version()
        tensor_count, key_count = self._unpack(_COUNTS, "the counts of tensors and keys")
        self._check_count(key_count, _MAX_KEYS, _MIN_KEY_BYTES, "metadata keys", 16)
        self._check_count(tensor_count, _MAX_TENSORS, _MIN_TENSOR_BYTES, "tensors", 8)
        values = self._values(key_count)
        alignment = self._alignment(values.get("general.alignment"))
        rows = self._tensor_rows(tensor_count)
        data_start = _padded(self._position, alignment)
        return Header(
            version=version,
            alignment=alignment,
            values=values,
            tensors=self._place(rows, data_start, alignment),
            data_start=data_start,
        )

    # ---- the parts of the header, in order

    def _version(self) -> int:
        start = self._file.read(0, min(self._file.size, 4096), "the magic")
        if start[:4] != b"GGUF":
            raise GGUFError(f"{self._file.path} is not a GGUF file: {what_it_is(start, self._file.size)}")
        self._position = 4
        (version,) = self._unpack(_U32, "the version")
        if version & 0xFFFF == 0 and version:
            raise GGUFError(
                f"{self._file.path} is a big-endian GGUF file (its version reads {version:#x}), "
                "made for machines such as s390x. Big-endian files are not implemented; "
                "convert it with gguf-convert-endian of the gguf package"
            )
        if version == 1:
            raise GGUFError(
                f"{self._file.path} is GGUF version 1, a format of a few weeks in 2023. Versions 2 and 3 are read; "
                "download a newer file of the model, or convert the original weights again"
            )
        if version not in VERSIONS:
            raise self._broken(
                f"its version is {version}, where 2 or 3 is expected: damaged, or of a newer format", at=4
            )
        return version

    def _values(self, count: int) -> dict[str, Value]:
        values: dict[str, Value] = {}
        strings = 0
        for index in range(count):
            at = self._position
            key = self._name(f"metadata key {index}")
            if key in values:
                raise self._broken(f"the metadata key {key!r} occurs twice", at=at)
            value = values[key] = self._value(key)
            if value.type == ARRAY and value.element == STRING:
                strings += value.count
            if strings > _MAX_STRINGS:
                raise self._broken(
                    f"its metadata holds more than {_MAX_STRINGS} strings, more than any model has", at=at
                )
        return values

    def _value(self, key: str) -> Value:
        """Skip a value."""
        at = self._position
        (kind,) = self._unpack(_U32, f"the type of {key!r}")
        element, count = kind, 1
        if kind == ARRAY:
            element, count = self._unpack(_ARRAY_HEAD, f"the element type and length of {key!r}")
            if element == ARRAY:
                raise self._broken(f"{key!r} is an array of arrays, which no reader of the format implements", at=at)
        start = self._position
        if element in FORMATS:
            self._skip(
                count * struct.calcsize(FORMATS[element]), f"{key!r}, {count} values of type {NAMES[element]}", at
            )
        elif element == STRING and kind == STRING:
            (length,) = self._unpack(_U64, f"the length of {key!r}")
            start += 8
            self._skip(length, f"{key!r}, a string of {length} bytes", at)
        elif element == STRING:
            self._check_count(count, _MAX_STRINGS, 8, f"strings in {key!r}", at)
            for run in string_runs(self._file, start, count, repr(key)):
                self._position = run.stop
                self._check_length(at)
        else:
            raise self._broken(f"{key!r} has the value type {element}, where 0 to 12 are defined", at=at)
        return Value(type=kind, element=element, count=count, start=start, stop=self._position)

    def _alignment(self, value: Value | None) -> int:
        if value is None:
            return DEFAULT_ALIGNMENT
        if value.describe() != "u32":
            raise self._broken(
                f"general.alignment is of type {value.describe()}, where u32 is expected", at=value.start
            )
        alignment: int = decode(self._file, "general.alignment", value)
        if alignment < 1 or alignment & (alignment - 1):
            raise self._broken(f"general.alignment is {alignment}, where a power of two is expected", at=value.start)
        return alignment

    def _tensor_rows(self, count: int) -> list[_Row]:
        rows: list[_Row] = []
        names: set[str] = set()
        for index in range(count):
            at = self._position
            name = self._name(f"the name of tensor {index}")
            if name in names:
                raise self._broken(f"the tensor {name!r} occurs twice", at=at)
            names.add(name)
            (dimensions,) = self._unpack(_U32, f"the number of dimensions of tensor {name!r}")
            if dimensions > _MAX_DIMENSIONS:
                raise self._broken(f"tensor {name!r} has {dimensions} dimensions, where at most 4 are allowed", at=at)
            shape = self._unpack(_DIMENSIONS[dimensions], f"the shape of tensor {name!r}")[::-1]
            if 0 in shape:
                raise self._broken(f"tensor {name!r} of shape {list(shape)} has no elements", at=at)
            kind, offset = self._unpack(_TYPE_AND_OFFSET, f"the type and offset of tensor {name!r}")
            rows.append((at, name, shape, kind, offset))
        return rows

    def _place(self, rows: list[_Row], data_start: int, alignment: int) -> dict[str, TensorInfo]:
        """Check that the tensors follow one another without overlap or gap, and end within the file."""
        size = self._file.size
        tensors: dict[str, TensorInfo] = {}
        expected: int | None = 0
        for index, (at, name, shape, kind, offset) in enumerate(rows):
            start = data_start + offset
            if offset % alignment:
                raise self._broken(
                    f"tensor {name!r} lies at offset {offset}, no multiple of the alignment {alignment}", at=at
                )
            if expected is not None and offset != expected:
                fault = "overlap or are out of order" if offset < expected else "leave a hole"
                raise self._broken(
                    f"tensor {name!r} lies at offset {offset} where {expected} is expected: tensors {fault}", at=at
                )
            nbytes = self._nbytes(at, name, shape, kind)
            if nbytes is None:
                following = rows[index + 1][4] if index + 1 < len(rows) else max(size - data_start, offset + 1)
                if following <= offset:
                    raise self._broken(
                        f"tensor {rows[index + 1][1]!r} lies before tensor {name!r}", at=rows[index + 1][0]
                    )
                nbytes, expected = following - offset, None
            else:
                expected = _padded(offset + nbytes, alignment)
            if start + nbytes > size:
                raise self._broken(
                    f"tensor {name!r} takes the bytes {start} to {start + nbytes}, but the file has only {size}",
                    at=at,
                    remedy="Probably a download that was not finished, or one piece of a file that was cut in pieces: "
                    "fetch it "
                    "again, or join the pieces",
                )
            tensors[name] = TensorInfo(
                name=name, shape=shape, type_id=kind, nbytes=nbytes, part=self._part, offset=start
            )
        return tensors

    def _nbytes(self, at: int, name: str, shape: tuple[int, ...], kind: int) -> int | None:
        """Bytes of a tensor; None: its type is unknown."""
        known = BY_ID.get(kind)
        if known is None:
            return None
        columns = shape[-1] if shape else 1
        if columns % known.block_size:
            raise self._broken(
                f"tensor {name!r} of shape {list(shape)} has rows of {columns} values, "
                f"no whole number of {known.name} blocks of {known.block_size}",
                at=at,
            )
        return math.prod(shape[:-1]) * known.row_bytes(columns)

    # ---- reading

    def _unpack(self, layout: struct.Struct, what: str) -> tuple[Any, ...]:
        start = self._need(layout.size, what)
        return layout.unpack_from(self._window, start)

    def _name(self, what: str) -> str:
        at = self._position
        (length,) = self._unpack(_U64, f"the length of {what}")
        if not 1 <= length <= _MAX_NAME_BYTES:
            raise self._broken(f"{what} is {length} bytes long, where 1 to {_MAX_NAME_BYTES} are expected", at=at)
        start = self._need(length, what)
        encoded = self._window[start : start + length]
        try:
            return encoded.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._broken(f"{what} is not UTF-8: {encoded[:80]!r}", at=at) from error

    def _need(self, count: int, what: str) -> int:
        """Skip `count` bytes; returns where they begin in the window."""
        start = self._position
        self._skip(count, what, start)
        if not (self._window_start <= start and start + count <= self._window_start + len(self._window)):
            wanted = min(max(count, _WINDOW), self._file.size - start)
            self._window, self._window_start = self._file.read(start, wanted, what), start
        return start - self._window_start

    def _skip(self, count: int, what: str, at: int) -> None:
        left = self._file.size - self._position
        if count > left:
            raise self._broken(f"{what}: {count} bytes are announced, but the file has {left} more (truncated?)", at=at)
        self._position += count
        self._check_length(at)

    def _check_length(self, at: int) -> None:
        if self._position > _MAX_HEAD_BYTES:
            raise self._broken(
                f"metadata and tensor table take more than {_MAX_HEAD_BYTES} bytes, more than any model's", at=at
            )

    def _check_count(self, count: int, limit: int, least_bytes: int, what: str, at: int) -> None:
        left = self._file.size - self._position
        if count > limit:
            raise self._broken(f"it announces {count} {what}, where at most {limit} are accepted", at=at)
        if count * least_bytes > left:
            raise self._broken(
                f"it announces {count} {what}, which take at least {count * least_bytes} bytes, "
                f"but has {left} more (truncated?)",
                at=at,
            )

    def _broken(self, what: str, *, at: int, remedy: str = _FETCH_AGAIN) -> GGUFError:
        return GGUFError(f"{self._file.path} is a broken GGUF file: at byte {at}, {shortened(what, 500)}. {remedy}")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
