"""The error of adapter files."""

from __future__ import annotations

from conversion.weights.tensor_source import WeightFileError


class AdapterError(WeightFileError):
    """An adapter, a classifier or an ordering is missing, broken, of a kind that is not implemented, or does not
    fit."""
