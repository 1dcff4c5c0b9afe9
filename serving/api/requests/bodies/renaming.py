"""Errors about a body that was made of another: they name the fields of the one that the client sent."""

from __future__ import annotations

import re
from collections.abc import Mapping

from serving.api.errors import ApiError


class Renames:
    """Names of fields in the body that a client sent.

    Args:
      names: fields of the body that was made of it, and their names in its own, as paths; `[]` stands for any item of a
        list. Of several that fit, the first counts.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._names = [
            (re.compile(re.escape(old).replace(r"\[\]", r"\[(\d+)\]") + r"(?![\w])"), new.replace("[]", r"[\1]"))
            for old, new in names.items()
        ]

    def apply(self, error: ApiError) -> None:
        """Rename the field that an error names."""
        if error.param is None:
            return
        for pattern, new in self._names:
            if pattern.match(error.param):
                old, error.param = error.param, pattern.sub(new, error.param, count=1)
                parts = re.split(rf"(?<![\w.]){re.escape(old)}(?![\w\[])", error.message)
                error.message = error.param.join(parts)
                return
