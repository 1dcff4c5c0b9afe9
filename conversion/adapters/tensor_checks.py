"""Checks on the tensors of adapters and classifiers."""

from __future__ import annotations

import numpy as np

from conversion.adapters.errors import AdapterError
from conversion.weights.safetensors_io import SafetensorsFile
from conversion.weights.tensor_source import Array

_FLOATS = frozenset({"float16", "bfloat16", "float32", "float64"})


def check_floating(file: SafetensorsFile, name: str) -> None:
    """Check that a tensor holds floating-point numbers.

    Raises:
      AdapterError: it has another type.
    """
    if str(file.dtype(name)) not in _FLOATS:
        raise AdapterError(f"{file.path}: tensor {name} has type {file.dtype(name)}; expected floating point")


def not_finite(array: Array) -> str | None:
    """The kind of non-finite numbers that an array holds, as text; None: all are finite."""
    if np.isfinite(array).all():
        return None
    return "NaN" if np.isnan(array).any() else "infinite values"
