"""Safetensors files: a bounds-checked reader that streams, and an atomic writer.

The reader is our own, since it must fill parts of larger arrays without mapping the file: mapped pages count as memory
of the process, and a loader that maps a model needs twice the model's size. Format:
https://huggingface.co/docs/safetensors: u64 header length, JSON header, data.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from conversion.files.json_fields import shown
from conversion.files.json_file import parse_json_object, read_json_object
from conversion.files.regular_file import is_file, open_regular, quoted, reason_of
from conversion.weights.tensor_source import Array, TensorSource, WeightFileError

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_MAX_HEADER = 32 * 2**20
"""A tensor takes about 150 bytes; the largest models have some thousands in a file."""
_MAX_AXES = 32
_CHUNK_BYTES = 4 * 2**20


class SafetensorsFile:
    """One file. The header is read and checked on opening; tensors are read on demand with plain reads.

    Raises:
      WeightFileError: the file is missing, truncated, or its header contradicts its size.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            self._fd = open_regular(self.path)
        except (OSError, ValueError) as error:
            raise WeightFileError(f"cannot open weight file {self.path}: {reason_of(error)}") from error
        # Nothing closes a source once its model is loaded: the file is closed when nothing refers to it any more.
        self._finalizer = weakref.finalize(self, os.close, self._fd)
        size = os.fstat(self._fd).st_size
        self.metadata, self._entries, self._data_start = _read_header(self._fd, size, self.path)

    def names(self) -> Iterable[str]:
        return self._entries.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._entries[name][1]

    def dtype(self, name: str) -> np.dtype[Any]:
        kind = self._entries[name][0]
        if kind not in DTYPES:
            raise WeightFileError(
                f"{self.path}: tensor {quoted(name)} has type {shown(kind)}, which is not implemented"
            )
        return DTYPES[kind]

    def stored_type(self, name: str) -> str:
        """The type as the file names it, also of a tensor that cannot be read."""
        return self._entries[name][0]

    def nbytes(self, name: str) -> int:
        """Bytes of the tensor in the file."""
        _, _, start, stop = self._entries[name]
        return stop - start

    def read_into(self, name: str, out: Array) -> None:
        """See `TensorSource.read_into`."""
        _, shape, start, _ = self._entries[name]
        stored = self.dtype(name)
        if out.shape != shape or not out.flags.c_contiguous:
            raise ValueError(f"{name}: destination {out.shape} does not fit tensor {shape}, or is not contiguous")
        flat = out.reshape(-1)
        position = self._data_start + start
        if out.dtype == stored:
            self._fill(memoryview(flat.view(np.uint8)), position, name)
            return
        step = max(1, _CHUNK_BYTES // stored.itemsize)
        buffer = np.empty(min(step, flat.size), stored)
        for first in range(0, flat.size, step):
            part = buffer[: min(step, flat.size - first)]
            self._fill(memoryview(part.view(np.uint8)), position + first * stored.itemsize, name)
            flat[first : first + part.size] = part.astype(out.dtype)

    def _fill(self, view: memoryview, position: int, name: str) -> None:
        done = 0
        while done < len(view):
            count = os.preadv(self._fd, [view[done:]], position + done)
            if count == 0:
                raise WeightFileError(
                    f"{self.path}: the file ends inside tensor {quoted(name)} (was it changed while loading?)"
                )
            done += count

    def close(self) -> None:
        self._finalizer()


Entry = tuple[str, tuple[int, ...], int, int]


def _read_header(fd: int, size: int, path: Path) -> tuple[dict[str, str], dict[str, Entry], int]:
    def broken(what: str) -> WeightFileError:
        return WeightFileError(f"{path} is not a whole safetensors file: {what}")

    prefix = os.pread(fd, 8, 0)
    if len(prefix) < 8:
        raise broken(f"it has {size} bytes, less than the 8 of a header length")
    length = int.from_bytes(prefix, "little")
    if length > min(size - 8, _MAX_HEADER):
        raise broken(f"its header claims {length} bytes of a file of {size}")
    header = parse_json_object(os.pread(fd, length, 8), "its header", error=broken)
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise broken("its __metadata__ is not a JSON object of texts")
    data_size = size - 8 - length
    entries: dict[str, Entry] = {}
    for name, entry in header.items():
        kind, shape, offsets = _entry_fields(entry)
        if kind is None or shape is None or offsets is None:
            raise broken(f"the entry of tensor {quoted(name)} lacks a proper dtype, shape or data_offsets")
        start, stop = offsets
        if stop < start or stop > data_size:
            raise broken(
                f"tensor {quoted(name)} lies at {start}..{stop} of {data_size} bytes of data: truncated download?"
            )
        if kind in DTYPES and math.prod(shape) * DTYPES[kind].itemsize != stop - start:
            raise broken(
                f"tensor {quoted(name)} of shape {list(shape)} and type {kind} does not fill {stop - start} bytes"
            )
        entries[name] = (kind, shape, start, stop)
    end = 0
    for name, (_, _, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != end:
            raise broken(
                f"tensor {quoted(name)} starts at byte {start} where {end} is expected: tensors overlap or leave a hole"
            )
        end = stop
    if end != data_size:
        raise broken(f"its tensors take {end} bytes of {data_size} bytes of data: truncated, or something was appended")
    return metadata, entries, 8 + length


def _entry_fields(entry: Any) -> tuple[str | None, tuple[int, ...] | None, tuple[int, int] | None]:
    """Type, shape and offsets of a tensor in the header; None for each that does not follow the format."""

    def naturals(value: Any) -> tuple[int, ...] | None:
        proper = (
            isinstance(value, list)
            and len(value) <= _MAX_AXES
            and all(type(n) is int and 0 <= n < 2**63 for n in value)
        )
        return tuple(value) if proper else None

    if not isinstance(entry, dict):
        return None, None, None
    kind, offsets = entry.get("dtype"), naturals(entry.get("data_offsets"))
    return (
        kind if isinstance(kind, str) else None,
        naturals(entry.get("shape")),
        (offsets[0], offsets[1]) if offsets is not None and len(offsets) == 2 else None,
    )


class SafetensorsFiles:
    """Several files as one source; a name may occur in one of them only.

    Raises:
      WeightFileError: as `SafetensorsFile`; also where two files hold the same name.
    """

    def __init__(self, paths: Sequence[Path | str]) -> None:
        self.files = [SafetensorsFile(path) for path in paths]
        self._owner: dict[str, SafetensorsFile] = {}
        for file in self.files:
            for name in file.names():
                if name in self._owner:
                    raise WeightFileError(f"tensor {quoted(name)} is in both {self._owner[name].path} and {file.path}")
                self._owner[name] = file

    def names(self) -> Iterable[str]:
        return self._owner.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        return self._owner[name].shape(name)

    def dtype(self, name: str) -> np.dtype[Any]:
        return self._owner[name].dtype(name)

    def read_into(self, name: str, out: Array) -> None:
        self._owner[name].read_into(name, out)

    def close(self) -> None:
        for file in self.files:
            file.close()


def read_array(source: TensorSource, name: str) -> Array:
    """One tensor in its stored type."""
    out = np.empty(source.shape(name), source.dtype(name))
    source.read_into(name, out)
    return out


def write_safetensors(path: Path | str, tensors: Mapping[str, Array]) -> None:
    """Write a file atomically: it gets its name once its bytes are on disk."""
    from safetensors.numpy import save_file

    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        save_file(
            {name: np.ascontiguousarray(array) for name, array in tensors.items()}, partial, metadata={"format": "pt"}
        )
        # The library creates files that only their owner can read.
        partial.chmod(mode)
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def index_files(index: Path) -> list[Path]:
    """The shards that a `*.safetensors.index.json` names, in its folder.

    Raises:
      WeightFileError: the index is broken, or a shard that it names is missing.
    """
    raw = read_json_object(index, error=WeightFileError, most=_MAX_HEADER)
    files = raw.get("weight_map")
    if not isinstance(files, dict) or not files or not all(isinstance(name, str) for name in files.values()):
        raise WeightFileError(f"{index} is not an index of safetensors files: expected a weight_map of names of files")
    names = sorted(set(files.values()))
    if strange := [name for name in names if Path(name).name != name or not name.isprintable() or len(name) > 200]:
        raise WeightFileError(f"{index} names files outside its own folder, or such as cannot be: {quoted(strange[0])}")
    paths = [index.parent / name for name in names]
    missing = [path.name for path in paths if not is_file(path)]
    if missing:
        raise WeightFileError(f"{index} names {len(missing)} files that are missing: {', '.join(missing[:5])}")
    return paths
