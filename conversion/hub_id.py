"""Names of repositories of the Hugging Face Hub, as distinct from local paths."""

from __future__ import annotations

import re
from pathlib import Path

from conversion.files.regular_file import exists

HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*", re.ASCII)
"""The form of a repository's name: owner/name."""


def is_hub_id(name: str) -> bool:
    """Whether this names a repository of the Hub and not a local path."""
    return HUB_ID.fullmatch(name) is not None and not exists(Path(name))
