"""The installed version of mistral-jax."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """The version, or "0" where the package is run without being installed."""
    try:
        return importlib.metadata.version("mistral-jax")
    except importlib.metadata.PackageNotFoundError:
        return "0"
