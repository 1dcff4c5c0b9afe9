"""The files of a tokenizer: how they are read, which of a folder's files is taken, and the error that all of it raises."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

SENTENCEPIECE_NAME = re.compile(r".*\.(?:model(?:\.v(\d+)(?:m\d+)?)?|spm)")
"""Names of sentencepiece models; Mistral's carry the version of their instruct format, such as tokenizer.model.v3."""


class TokenizerError(ValueError):
    """A tokenizer file is missing, broken or of a kind that we do not implement."""


def find_tokenizer_file(folder: Path) -> Path:
    """The file that is a folder's tokenizer.

    tekken.json comes first (Mistral's own file, never wrong), then tokenizer.json, then tokenizer.model with the
    highest version in its name.

    Raises:
      TokenizerError: there is none.
    """
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    tekken = [name for name in names if name.startswith("tekken") and name.endswith(".json")]
    for name in ("tekken.json", *tekken, "tokenizer.json"):
        if name in names:
            return folder / name
    if (model := find_sentencepiece(folder)) is not None:
        return model
    raise TokenizerError(
        f"{folder} has no tokenizer: none of tekken.json, tokenizer.json and tokenizer.model is among its "
        f"{len(names)} files"
        f"{' (' + ', '.join(names[:8]) + ')' if names else ''}. Download the tokenizer of the model into it, or name "
        "one explicitly."
    )


def find_sentencepiece(folder: Path) -> Path | None:
    """The sentencepiece model of a folder, the one with the highest version in its name; None where there is none."""
    models = {
        entry: int(match[1] or 0)
        for entry in sorted(folder.iterdir())
        if entry.is_file() and (match := SENTENCEPIECE_NAME.fullmatch(entry.name))
    }
    return max(models, key=models.__getitem__) if models else None


def read_json_object(path: Path, *, missing_ok: bool = False) -> dict[str, Any]:
    """A JSON file whose top is an object; {} for an absent file if `missing_ok`.

    Raises:
      TokenizerError: the file is absent, unreadable, or no JSON object.
    """
    try:
        value: object = json.loads(path.read_bytes())
    except FileNotFoundError:
        if missing_ok:
            return {}
        raise TokenizerError(f"There is no file {path}.") from None
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(
            f"{path} is no valid JSON ({error}). Was the download cut short? Fetch it again."
        ) from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path} holds a JSON {type(value).__name__} where an object was expected.")
    return cast("dict[str, Any]", value)
