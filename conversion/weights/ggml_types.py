"""The tensor types of ggml: how many values a block holds, and how many bytes it takes.

A tensor's values are stored row by row; the blocks of a row lie side by side along the innermost axis, so a row of `n`
values takes `n / block_size * block_bytes` bytes and rows can be reordered without being unpacked.
Source: ggml/include/ggml.h and ggml-common.h of llama.cpp.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, kw_only=True)
class GGMLType:
    """One tensor type."""

    name: str
    """ggml's name, such as "Q4_K"."""
    id: int
    """The number in files."""
    block_size: int
    """Values in a block; 1 for plain types."""
    block_bytes: int
    """Bytes of a block."""
    dtype: np.dtype[Any] | None = None
    """The element type of a plain type; None: packed blocks."""

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    def row_bytes(self, columns: int) -> int:
        """Bytes of a row of this many values.

        Raises:
          ValueError: they are not a whole number of blocks.
        """
        if columns % self.block_size:
            raise ValueError(f"a row of {columns} values is no whole number of {self.name} blocks of {self.block_size}")
        return columns // self.block_size * self.block_bytes


def _plain(name: str, id: int, dtype: Any) -> GGMLType:
    return GGMLType(name=name, id=id, block_size=1, block_bytes=np.dtype(dtype).itemsize, dtype=np.dtype(dtype))


def _packed(name: str, id: int, block_size: int, block_bytes: int) -> GGMLType:
    return GGMLType(name=name, id=id, block_size=block_size, block_bytes=block_bytes)


TYPES = (
    _plain("F32", 0, np.float32),
    _plain("F16", 1, np.float16),
    _packed("Q4_0", 2, 32, 18),
    _packed("Q4_1", 3, 32, 20),
    _packed("Q5_0", 6, 32, 22),
    _packed("Q5_1", 7, 32, 24),
    _packed("Q8_0", 8, 32, 34),
    _packed("Q2_K", 10, 256, 84),
    _packed("Q3_K", 11, 256, 110),
    _packed("Q4_K", 12, 256, 144),
    _packed("Q5_K", 13, 256, 176),
    _packed("Q6_K", 14, 256, 210),
    _packed("IQ2_XXS", 16, 256, 66),
    _packed("IQ2_XS", 17, 256, 74),
    _packed("IQ3_XXS", 18, 256, 98),
    _packed("IQ1_S", 19, 256, 50),
    _packed("IQ4_NL", 20, 32, 18),
    _packed("IQ3_S", 21, 256, 110),
    _packed("IQ2_S", 22, 256, 82),
    _packed("IQ4_XS", 23, 256, 136),
    _plain("I8", 24, np.int8),
    _plain("I16", 25, np.int16),
    _plain("I32", 26, np.int32),
    _plain("I64", 27, np.int64),
    _plain("F64", 28, np.float64),
    _packed("IQ1_M", 29, 256, 56),
    _plain("BF16", 30, _BFLOAT16),
    _packed("TQ1_0", 34, 256, 54),
    _packed("TQ2_0", 35, 256, 66),
    _packed("MXFP4", 39, 32, 17),
    _packed("NVFP4", 40, 64, 36),
)
"""Every type that we read. Types with other numbers are known by number only."""

BY_ID = {kind.id: kind for kind in TYPES}
BY_NAME = {kind.name: kind for kind in TYPES}
