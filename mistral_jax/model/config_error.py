"""The error for unusable model configurations."""

from __future__ import annotations


class ConfigError(ValueError):
    """A model's configuration is missing, contradictory, or asks for something that is not implemented."""
