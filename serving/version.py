"""The version of mistral-jax, and its distribution name."""

from __future__ import annotations

from mistral_jax import __version__

DISTRIBUTION = "mistral-jax-server"
"""The package name on PyPI. `mistral-jax`, the name of the command, belongs to another project there."""


def version() -> str:
    """The version of the running code."""
    return __version__
