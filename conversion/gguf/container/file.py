"""GGUF files: a model in one file, or in parts named `model-00001-of-00003.gguf`.

Opening reads the header only, in milliseconds; tensors are read on demand into memory that the caller owns, as the
packed blocks of the file. The parser is our own, since the `gguf` package makes a view per vocabulary string and checks
no bounds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np

from conversion.files.regular_file import exists
from conversion.gguf.container.file_bytes import GGUFError, OpenedFile
from conversion.gguf.container.header import Header, TensorInfo, read_header
from conversion.gguf.container.metadata import GGUFMetadata
from conversion.weights.tensor_source import Array

__all__ = ["GGUFError", "GGUFFile", "GGUFMetadata", "TensorInfo"]

_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf", re.DOTALL)

_INTEGERS = ("u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64")


class GGUFFile:
    """A GGUF model: its header, and its tensors as stored. Several threads may read from it at once.

    Args:
      path: the file; of a split model, any of its parts, which are all opened.

    Raises:
      GGUFError: a file is missing, not a GGUF file, broken, or of a kind that is not implemented; the message says
        which, where and what to do. Contradictions and truncated files are found on opening.
    """

    def __init__(self, path: Path | str) -> None:
        first = OpenedFile(path)
        header = read_header(first)
        self._files, headers = [first], [header]
        metadata = GGUFMetadata(first, header.values)
        count = _split_number(metadata, "split.count", first.path, default=1)
        if count > 1:
            self._files, headers = _open_parts(first, metadata, count)
            metadata = GGUFMetadata(self._files[0], headers[0].values)
        self.paths: tuple[Path, ...] = tuple(file.path for file in self._files)
        """The file, or the parts in their order."""
        self.version = headers[0].version
        self.metadata = metadata
        """Keys and values; of a split model, those of its first part."""
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(_united(self.paths, headers))
        """The tensors by name, in the order of the files."""
        expected = _split_number(metadata, "split.tensors.count", self.paths[0], default=len(self.tensors))
        if count > 1 and expected != len(self.tensors):
            raise GGUFError(
                f"the {count} parts of {self.paths[0]} hold {len(self.tensors)} tensors where split.tensors.count says "
                f"{expected}: parts of different models, perhaps. Fetch them again"
            )

    @property
    def architecture(self) -> str:
        """`general.architecture`, such as "llama".

        Raises:
          GGUFError: the file does not say.
        """
        architecture = self.metadata.get("general.architecture")
        if not isinstance(architecture, str) or not architecture:
            raise GGUFError(
                f"{self.paths[0]} does not say which architecture it is of: general.architecture is {architecture!r}, "
                'where a name such as "llama" is expected. It may not be a language model'
            )
        return architecture

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors together, without padding."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    @property
    def elements(self) -> int:
        """Values of all tensors together: the number of parameters."""
        return sum(tensor.elements for tensor in self.tensors.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits that a value takes on average; 0 for a file without tensors."""
        return 8 * self.nbytes / max(1, self.elements)

    def read_raw(self, name: str, out: Array) -> None:
        """Fill `out`, C-contiguous uint8 of `nbytes` bytes in any shape, with a tensor's bytes, straight from the file.

        Raises:
          KeyError: there is no such tensor.
          ValueError: `out` does not fit.
          GGUFError: the tensor's type is not implemented, or the file has been truncated or closed.
        """
        tensor = self._tensor(name)
        self._fill(tensor, 0, tensor.rows, out)

    def read_raw_rows(self, name: str, first: int, count: int, out: Array) -> None:
        """As `read_raw`, for the rows [first, first + count) of a tensor whose leading axes are taken as one.

        Raises:
          IndexError: the tensor has no such rows.
        """
        tensor = self._tensor(name)
        if first < 0 or count < 0 or first + count > tensor.rows:
            raise IndexError(f"{name!r} has {tensor.rows} rows: there are no rows {first} to {first + count}")
        self._fill(tensor, first, count, out)

    def view(self, name: str) -> Array:
        """A tensor's bytes as read-only uint8 [..., row_bytes], mapped, not read: pages are loaded when they are
        touched.

        It stays valid when the file is closed. A process that touches it after another program has truncated the file
        is killed by the system (as with any map): for files that may change, use `read_raw`.
        """
        tensor = self._tensor(name)
        shape = (*tensor.shape[:-1], tensor.row_bytes)
        bytes_ = self._files[tensor.part].mapped(tensor.offset + tensor.nbytes, f"tensor {name!r}")
        return np.frombuffer(bytes_, np.uint8, tensor.nbytes, tensor.offset).reshape(shape)

    def close(self) -> None:
        """Close the files. Views and decoded metadata stay valid; closing twice is harmless."""
        for file in self._files:
            file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tensor(self, name: str) -> TensorInfo:
        """The tensor, of a type that is implemented."""
        if name not in self.tensors:
            raise KeyError(f"{self.paths[0]} has no tensor {name!r}")
        tensor = self.tensors[name]
        try:
            _ = tensor.type
        except GGUFError as error:
            raise GGUFError(f"{self.paths[tensor.part]}: {error}") from None
        return tensor

    def _fill(self, tensor: TensorInfo, first: int, count: int, out: Array) -> None:
        row_bytes = tensor.row_bytes
        if out.dtype != np.uint8 or out.nbytes != count * row_bytes or not out.flags.c_contiguous:
            raise ValueError(
                f"destination {out.dtype}{list(out.shape)} does not fit: {count} rows of {tensor.name!r} are "
                f"{count * row_bytes} contiguous bytes of uint8"
            )
        start = tensor.offset + first * row_bytes
        self._files[tensor.part].read_into(memoryview(out.reshape(-1)), start, f"tensor {tensor.name!r}")


def _open_parts(given: OpenedFile, metadata: GGUFMetadata, count: int) -> tuple[list[OpenedFile], list[Header]]:
    """All parts of a split model, in order, found by the name of one of them."""
    number = _split_number(metadata, "split.no", given.path)
    match = _PART_NAME.fullmatch(given.path.name)
    if match is None or (int(match["number"]), int(match["count"])) != (number + 1, count):
        raise GGUFError(
            f"{given.path} says that it is part {number + 1} of {count} of a split model, so its name must end in "
            f"-{number + 1:05}-of-{count:05}.gguf and the other parts lie beside it. Give it the name that it had"
        )
    paths = [given.path.with_name(f"{match['stem']}-{part + 1:05}-of-{count:05}.gguf") for part in range(count)]
    missing = [path.name for path in paths if not exists(path)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise GGUFError(
            f"{given.path} is one of {count} parts, of which {len(missing)} are missing beside it: "
            f"{', '.join(missing[:5])}{more}. Fetch them into the same folder"
        )
    files = [given if part == number else OpenedFile(path) for part, path in enumerate(paths)]
    headers = [read_header(file, part) for part, file in enumerate(files)]
    for part, (file, header) in enumerate(zip(files, headers, strict=True)):
        values = GGUFMetadata(file, header.values)
        found = _split_number(values, "split.no", file.path), _split_number(values, "split.count", file.path)
        if found != (part, count):
            raise GGUFError(
                f"{file.path} says that it is part {found[0] + 1} of {found[1]}, where its name makes it part "
                f"{part + 1} of {count}: renamed, perhaps. Fetch it again"
            )
    return files, headers


def _split_number(metadata: GGUFMetadata, key: str, path: Path, default: int | None = None) -> int:
    if key not in metadata and default is not None:
        return default
    described = metadata.describe(key) if key in metadata else "missing"
    if described not in _INTEGERS:
        raise GGUFError(
            f"{path}: {key} is {described}, where a whole number is expected: a broken part of a split model"
        )
    return metadata[key]


def _united(paths: tuple[Path, ...], headers: list[Header]) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for path, header in zip(paths, headers, strict=True):
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise GGUFError(f"tensor {name!r} is in both {paths[tensors[name].part]} and {path}")
            tensors[name] = tensor
    return tensors
