"""The tables of a KV cache: one for each length among the layers. Numbers only; no arrays.

Axis letters: C blocks of a table, J tokens of a block, S = C * J.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mistral_jax.model.config import MistralConfig

BLOCK = 128
"""J: tokens of a block, the unit of allocation and of attention's reads."""

SPARE = 0
"""The block of a pool that stands in tables where a row has none. Nothing is written to it, and it stays zero."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableKind:
    """The table that some layers of a row share."""

    blocks: int
    """C"""
    window: int | None
    """Most tokens that a query of one of these layers sees, itself included; None: all."""

    def needed(self, tokens: int) -> int:
        """Entries of the table that so many tokens fill."""
        return min(-(-tokens // BLOCK), self.blocks)

    def first_seen(self, position: int) -> int:
        """The first of a sequence's blocks that the query at a position sees."""
        return 0 if self.window is None else max(position - self.window + 1, 0) // BLOCK


def layer_lengths(config: MistralConfig, *, length: int, chunk: int) -> list[int]:
    """S of each layer: the whole length, or less with a sliding window. The first query of a chunk then still sees a
    full window when the block of the chunk's last token has replaced another."""
    wanted = [length if window is None else min(length, window + chunk + BLOCK) for window in config.layer_windows]
    return [-(-size // BLOCK) * BLOCK for size in wanted]


def table_kinds(config: MistralConfig, *, length: int, chunk: int) -> tuple[tuple[TableKind, ...], tuple[int, ...]]:
    """The kinds, shortest first; and which of them each layer uses."""
    counts = [size // BLOCK for size in layer_lengths(config, length=length, chunk=chunk)]
    sizes = sorted(set(counts))
    windows = [
        [window for window, count in zip(config.layer_windows, counts, strict=True) if count == size] for size in sizes
    ]
    kinds = tuple(
        TableKind(blocks=size, window=None if None in own else max(window for window in own if window is not None))
        for size, own in zip(sizes, windows, strict=True)
    )
    return kinds, tuple(sizes.index(count) for count in counts)
