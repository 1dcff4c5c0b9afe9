"""The result of an inspection, as plain data and as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from conversion.inspection.memory_estimate import MemoryEstimate

_MAX_VALUE = 100
"""Characters of a metadata value that are shown."""


@dataclass(frozen=True, kw_only=True)
class LongArray:
    """An array of the metadata of which only the beginning is kept."""

    type: str
    """Type and length, such as "string[32000]"."""
    first: tuple[Any, ...]
    """Its first elements; empty for arrays of strings, which would all have to be read."""

    def __str__(self) -> str:
        return f"{self.type}: {', '.join(map(str, self.first))}, …" if self.first else self.type


@dataclass(frozen=True, kw_only=True)
class TensorSummary:
    """A tensor as it is stored."""

    name: str
    """As the file has it."""
    shape: tuple[int, ...]
    """Slowest axis first."""
    type: str
    """ggml's name; for safetensors, theirs, which are the same for F32, F16 and BF16."""
    nbytes: int
    file: str


@dataclass(frozen=True, kw_only=True)
class TypeTotal:
    """All tensors of a type together."""

    type: str
    tensors: int
    weights: int
    nbytes: int


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """What a model's files contain. `print` shows it as text; `as_json` gives plain data."""

    path: str
    format: str
    """Such as "GGUF version 3" or "Hugging Face folder"."""
    files: Mapping[str, int]
    """Bytes of each weight file."""
    metadata: Mapping[str, Any]
    """Of a GGUF file, its own; of a folder, its configuration, and what safetensors files say of themselves."""
    tensors: tuple[TensorSummary, ...]
    memory: MemoryEstimate
    problem: str | None
    """Why the model could not be served; None: the headers show no problem."""

    @property
    def parameters(self) -> int:
        """Values in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors)

    @property
    def bits_per_weight(self) -> float:
        """0 for a file without tensors."""
        return 8 * self.nbytes / max(1, self.parameters)

    @property
    def types(self) -> tuple[TypeTotal, ...]:
        """Totals by type, the largest first."""
        kinds = dict.fromkeys(tensor.type for tensor in self.tensors)
        totals = [_total(kind, [tensor for tensor in self.tensors if tensor.type == kind]) for kind in kinds]
        return tuple(sorted(totals, key=lambda total: -total.nbytes))

    def as_json(self) -> dict[str, Any]:
        """Everything as plain data."""
        totals = {"parameters": self.parameters, "nbytes": self.nbytes, "bits_per_weight": self.bits_per_weight}
        return {**asdict(self), **totals, "types": [asdict(total) for total in self.types]}

    def __str__(self) -> str:
        return render(self)


def render(inspection: Inspection, *, tensors: bool = True) -> str:
    """The whole report; the table of tensors is optional."""
    parts = [_head(inspection), _metadata(inspection)]
    if tensors:
        parts.append(_tensors(inspection))
    parts.append(_types(inspection))
    if inspection.memory.weights:
        parts.append(_memory(inspection))
    return "\n\n".join(parts)


def table(rows: list[tuple[str, ...]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Rows of cells in columns of equal width, indented; `right`: columns that are aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines: list[str] = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(("  " + "  ".join(cells)).rstrip())
    return lines


def size(count: int) -> str:
    """Bytes in the largest unit of 1024 that fits."""
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:,.0f} B" if unit == "B" else f"{value:,.1f} {unit}"
        value /= 1024
    return f"{value:,.1f} TiB"


def _head(i: Inspection) -> str:
    lines = [i.path]
    lines += table(
        [
            ("format", i.format),
            ("files", ", ".join(f"{name} ({size(count)})" for name, count in i.files.items())),
            ("parameters", f"{i.parameters:,}"),
            ("bits per weight", f"{i.bits_per_weight:.3f}"),
        ]
    )
    return "\n".join([*lines, *([f"  PROBLEM: {i.problem}"] if i.problem else [])])


def _metadata(i: Inspection) -> str:
    rows = [(key, _short(value)) for key, value in i.metadata.items()]
    return "\n".join(["Metadata", *(table(rows) if rows else ["  none"])])


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= _MAX_VALUE else f"{text[: _MAX_VALUE - 1]}…"


def _tensors(i: Inspection) -> str:
    several = len(i.files) > 1
    rows = [
        (t.name, " x ".join(map(str, t.shape)) or "scalar", t.type, size(t.nbytes), *((t.file,) if several else ()))
        for t in i.tensors
    ]
    return "\n".join(["Tensors", *(table(rows, right=frozenset({3})) if rows else ["  none"])])


def _types(i: Inspection) -> str:
    rows = [("type", "tensors", "weights", "size", "share")]
    rows += [
        (t.type, f"{t.tensors:,}", f"{t.weights:,}", size(t.nbytes), f"{t.nbytes / i.nbytes:.1%}") for t in i.types
    ]
    rows.append(("all", f"{len(i.tensors):,}", f"{i.parameters:,}", size(i.nbytes), ""))
    return "\n".join(["Types", *table(rows, right=frozenset({1, 2, 3, 4}))])


def _memory(i: Inspection) -> str:
    rows = [(f"weights with --quant {quant}", size(count)) for quant, count in i.memory.weights.items()]
    cache = i.memory.cache_per_token
    if cache is not None:
        rows.append(("cache, for each token", size(cache)))
        rows.append(("cache, for a sequence of 4,096", size(4096 * cache)))
    return "\n".join(["Memory on the device (computing in bfloat16)", *table(rows, right=frozenset({1}))])


def _total(kind: str, tensors: list[TensorSummary]) -> TypeTotal:
    return TypeTotal(
        type=kind,
        tensors=len(tensors),
        weights=sum(math.prod(tensor.shape) for tensor in tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
    )
