"""The version of mistral-jax, and what pip calls it."""

from __future__ import annotations

from mistral_jax import __version__

DISTRIBUTION = "mistral-jax-server"
"""The name for pip. `mistral-jax`, as the command is called, is another project's there."""


def version() -> str:
    """The version of the code that runs."""
    return __version__
