"""The metadata of a GGUF file, with types and ranges checked: nothing in a file is trusted."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from conversion.gguf.container.file import GGUFError

_UINT32 = 2**32 - 1


class Fields:
    """Typed access to metadata. Keys without `general.` or `tokenizer.` are those of the file's architecture.

    Every method returns its default where the key is absent, and raises GGUFError, naming the key and what was
    expected, where it is absent without a default, of another type, or out of range.
    """

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata = metadata
        self.architecture = architecture

    def full(self, key: str) -> str:
        """The full key, as in the file."""
        return key if key.startswith(("general.", "tokenizer.")) else f"{self.architecture}.{key}"

    def get(self, key: str) -> Any:
        """The unchecked value; None where the key is absent."""
        return self._metadata.get(self.full(key))

    def has(self, key: str, *harmless: Any) -> bool:
        """Whether the key is present with a value that is not one of the harmless ones."""
        value = self.get(key)
        return value is not None and not (isinstance(value, bool | int | float | str) and value in harmless)

    def natural(self, key: str, default: int | None = None, *, least: int = 1, most: int = _UINT32) -> int:
        value = self._present(key, default)
        if type(value) is not int or not least <= value <= most:
            raise self.unexpected(key, value, f"an integer from {least} to {most}")
        return value

    def per_layer(self, key: str, layers: int, default: int | None = None, *, most: int = _UINT32) -> int:
        """A number given for all layers or, in an array, for each; our models have equal layers."""
        value = self._present(key, default)
        if not isinstance(value, np.ndarray | list):
            return self.natural(key, default, most=most)
        items = [int(item) for item in self._numbers(key, value)]
        if len(items) < layers or not items:
            raise self.unexpected(key, items, f"a number for each of {layers} layers")
        if len(set(items[:layers])) > 1:
            raise GGUFError(
                f"{self.full(key)} differs between layers ({sorted(set(items[:layers]))}), which is not implemented: "
                "all layers have the same shape"
            )
        if not 1 <= items[0] <= most:
            raise self.unexpected(key, items[0], f"an integer from 1 to {most}")
        return items[0]

    def real(self, key: str, default: float | None = None, *, above: float = 0.0, most: float = 1e12) -> float:
        """A finite number in (above, most], as `shortest` has it."""
        value = self._present(key, default)
        if type(value) not in (int, float) or not above < value <= most:  # NaN compares false
            raise self.unexpected(key, value, f"a number above {above:g} and at most {most:g}")
        return shortest(float(value))

    def text(self, key: str, default: str | None = None) -> str:
        value = self._present(key, default)
        if not isinstance(value, str):
            raise self.unexpected(key, value, "a string")
        return value

    def flags(self, key: str) -> list[bool]:
        """An array of booleans; [] where it is absent."""
        value = self.get(key)
        if value is None:
            return []
        return [bool(item) for item in self._numbers(key, value)]

    def texts(self, keys: re.Pattern[str]) -> list[str]:
        """All strings whose full keys match."""
        values = [self._metadata[key] for key in self._metadata if keys.fullmatch(key)]
        return [value for value in values if isinstance(value, str)]

    def unexpected(self, key: str, value: Any, expected: str) -> GGUFError:
        text = repr(value)
        return GGUFError(f"{self.full(key)} is {text if len(text) < 80 else text[:77] + '...'}; expected {expected}")

    def _present(self, key: str, default: Any) -> Any:
        value = self.get(key)
        if value is None:
            value = default
        if value is None:
            raise GGUFError(f"the metadata lacks {self.full(key)}")
        return value

    def _numbers(self, key: str, value: Any) -> Sequence[Any]:
        if not isinstance(value, np.ndarray) or value.dtype.kind not in "biu":
            raise self.unexpected(key, value, "an array of integers or booleans")
        return cast("Sequence[Any]", value.tolist())


def shortest(value: float) -> float:
    """The decimal number behind one that was rounded to float32: 1e-05 for 9.999999747378752e-06.

    That is the shortest decimal with the same float32; a number that is not a float32 is returned unchanged.
    """
    if not math.isfinite(value) or abs(value) > float(np.finfo(np.float32).max) or float(np.float32(value)) != value:
        return value
    return float(str(np.float32(value)))
