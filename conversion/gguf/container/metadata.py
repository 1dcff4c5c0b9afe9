"""Metadata values of a GGUF file: their positions, skipping them fast, and decoding them on access.

A vocabulary of 131,072 tokens with its merges is hundreds of thousands of strings, each a u64 length and its bytes:
the end of the array is found only by following the lengths. `string_runs` follows them thousands at a time.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from conversion.gguf.container.file_bytes import GGUFError, OpenedFile
from conversion.weights.tensor_source import Array

STRING = 8
ARRAY = 9
FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
"""The struct format of each number type."""
NAMES = ("u8", "i8", "u16", "i16", "u32", "i32", "f32", "bool", "string", "array", "u64", "i64", "f64")
_LENGTH = struct.Struct("<Q")
# A window holds some thousands of strings, and is not too long for a short array.
_WINDOW = 2**18
_WINDOW_PER_STRING = 16
_LEAST_WINDOW = 2**12
_SINGLE_STEPS = 256


@dataclass(frozen=True, slots=True)
class Value:
    """The position of a metadata value."""

    type: int
    element: int
    """The type of an array's elements; of other values, their own."""
    count: int
    """Elements of an array; 1 for other values."""
    start: int
    """The first byte of a value; of a string, the one after its length."""
    stop: int

    def describe(self) -> str:
        """Its type as text, such as "u32" or "string[32000]"."""
        return f"{NAMES[self.element]}[{self.count}]" if self.type == ARRAY else NAMES[self.type]


class GGUFMetadata(Mapping[str, Any]):
    """A file's metadata. Values are decoded on first access and cached.

    Numbers come as int or float, bool as bool, strings as str, arrays of strings as list[str], arrays of numbers as
    read-only numpy arrays. Bytes of a string that are not UTF-8 become U+FFFD. In arrays of strings, which are
    vocabularies, they become lone surrogates, so that no two tokens become the same and
    `text.encode("utf-8", "surrogateescape")` gives the bytes back.

    Raises:
      GGUFError: on access, if the file was truncated or closed before the value was decoded.
    """

    def __init__(self, file: OpenedFile, values: dict[str, Value]) -> None:
        self._file = file
        self._values = values
        self._decoded: dict[str, Any] = {}

    def __getitem__(self, key: str) -> Any:
        if key not in self._decoded:
            self._decoded[key] = decode(self._file, key, self._values[key])
        return self._decoded[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def describe(self, key: str) -> str:
        """The type of a value, such as "u32" or "string[32000]", without decoding it."""
        return self._values[key].describe()

    def count(self, key: str) -> int:
        """The number of elements of an array, without decoding it; 1 for other values."""
        return self._values[key].count


def decode(file: OpenedFile, key: str, value: Value) -> Any:
    """The value, as `GGUFMetadata` gives it."""
    what = f"the value of {key!r}"
    if value.type == ARRAY and value.element == STRING:
        return [text for run in string_runs(file, value.start, value.count, what) for text in run.decoded(file, what)]
    data = file.read(value.start, value.stop - value.start, what)
    if value.type == STRING:
        return data.decode("utf-8", "replace")
    if value.type != ARRAY:
        return struct.unpack(FORMATS[value.type], data)[0]
    if NAMES[value.element] == "bool":
        truths = np.frombuffer(data, np.uint8) != 0
        truths.flags.writeable = False
        return truths
    return np.frombuffer(data, np.dtype(FORMATS[value.element]))


@dataclass(frozen=True, slots=True)
class StringRun:
    """Consecutive strings of an array."""

    start: int
    """Where the first one's length lies in the file."""
    borders: Array
    """Where the length of each one lies, counted from `start`, and at the end where the last one ends."""
    data: bytes
    """The bytes from `start` on: those of all strings, unless it is a single one that is too long."""

    @property
    def stop(self) -> int:
        return self.start + int(self.borders[-1])

    def decoded(self, file: OpenedFile, what: str) -> list[str]:
        data, borders = self.data, self.borders.tolist()
        if borders[-1] > len(data):
            data = file.read(self.start, borders[-1], what)
        return [data[left + 8 : right].decode("utf-8", "surrogateescape") for left, right in pairwise(borders)]


def string_runs(file: OpenedFile, position: int, count: int, what: str) -> Iterator[StringRun]:
    """Skip `count` strings from `position` on.

    Raises:
      GGUFError: a string goes past the end of the file.
    """
    while count:
        window = min(_WINDOW, _LEAST_WINDOW + count * _WINDOW_PER_STRING)
        data = file.read(position, min(window, file.size - position), what)
        borders = _borders(data, count)
        if len(borders) == 1:
            length = _LENGTH.unpack_from(data)[0] if len(data) >= 8 else 0
            if len(data) < 8 or length > file.size - position - 8:
                raise GGUFError(
                    f"{file.path} is a broken GGUF file: at byte {position}, {what}: a string of {length} bytes is "
                    f"announced, but the file has {max(0, file.size - position - 8)} more (truncated?)"
                )
            borders = np.array([0, 8 + length])
        run = StringRun(position, borders, data)
        yield run
        position = run.stop
        count -= len(borders) - 1


def _borders(data: bytes, count: int) -> Array:
    """Where the first strings in `data` begin, at most `count` and only those that are complete, and where the last one
    ends.

    Nearly every length is below 256: a byte and seven zeros. All such places are found at once; where each leads to the
    next, they form a chain, and a chain that begins at a real string contains real strings only. Strings outside chains
    (long or empty ones, or ones that contain zeros) are followed one by one.
    """
    short, following, breaks = _short_lengths(data)
    runs: list[Array] = []
    read_length, last_length = _LENGTH.unpack_from, len(data) - 8
    position = 0
    while count:
        first = int(np.searchsorted(short, position))
        if first < len(short) and short[first] == position:
            link = int(np.searchsorted(breaks, first))
            last = int(breaks[link]) if link < len(breaks) else len(short) - 1
            last = min(last, first + count - 1)
            if following[last] > len(data):
                last -= 1
            if last >= first:
                runs.append(short[first : last + 1])
                position = int(following[last])
                count -= last + 1 - first
        singles: list[int] = []
        for _ in range(min(count, _SINGLE_STEPS)):
            if position > last_length:
                break
            stop = position + 8 + read_length(data, position)[0]
            if stop > len(data):
                break
            singles.append(position)
            position = stop
        runs.append(np.array(singles, np.int64))
        count -= len(singles)
        if len(singles) < _SINGLE_STEPS:
            break
    return np.concatenate([*runs, np.array([position], np.int64)])


def _short_lengths(data: bytes) -> tuple[Array, Array, Array]:
    """Where a byte and seven zeros lie, where each one leads to as a length, and the indices whose successor lies
    elsewhere."""
    values = np.frombuffer(data, np.uint8)
    if len(values) < 8:
        nothing = np.empty(0, np.int64)
        return nothing, nothing, nothing
    zero = values[1:] == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    short = np.flatnonzero(four[:-3] & four[3:])
    following = short + 8 + values[short]
    return short, following, np.flatnonzero(following[:-1] != short[1:])
