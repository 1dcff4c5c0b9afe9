"""What is in a file, from its headers alone: `mistral-jax inspect`, and how much memory a model would take."""

from conversion.inspection.inspection import find_models, inspect
from conversion.inspection.report import Inspection

__all__ = ["Inspection", "find_models", "inspect"]
