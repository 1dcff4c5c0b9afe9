"""A source of tensors for tests: arrays in memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


class Arrays:
    """A source that holds its tensors."""

    def __init__(self, tensors: dict[str, np.ndarray]) -> None:
        self.tensors = tensors

    def names(self) -> Iterable[str]:
        return self.tensors

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def dtype(self, name: str) -> np.dtype[Any]:
        return self.tensors[name].dtype

    def read_into(self, name: str, out: np.ndarray) -> None:
        out[...] = self.tensors[name]
