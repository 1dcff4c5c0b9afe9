"""An inspection as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from conversion.inspection import Inspection

_MAX_VALUE = 100
"""Characters of a metadata value that are shown."""


def render(inspection: Inspection, *, tensors: bool = True) -> str:
    """The whole of it; without the table of tensors if they are not wanted."""
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
