"""The files of a tokenizer: reading them, choosing one in a folder, and the error of all tokenizer code."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conversion.config.model_sizes import MOST_TOKENS, MOST_UNUSED_TOKENS
from conversion.files import json_file
from conversion.files.json_fields import shown
from conversion.files.json_file import MOST_BYTES, MOST_VOCABULARY_BYTES
from conversion.files.regular_file import read_regular, reason_of, shortened

SENTENCEPIECE_NAME = re.compile(r".*\.(?:model(?:\.v(\d+)(?:m\d+)?)?|spm)")
"""Names of sentencepiece models; Mistral's carry the version of their instruct format, such as tokenizer.model.v3."""


_MOST_TOKEN_LENGTH = 1024
_MOST_TEXT = 2**24
"""Characters, or bytes, of all tokens together. All splits of a token are examined, so the cost grows with the square
of its length."""


class TokenizerError(ValueError):
    """A tokenizer file is missing, broken or of a kind that we do not implement."""


@contextmanager
def known_form(source: str) -> Generator[None]:
    """Turns errors of the code inside, caused by a file's values, into one that names the file.

    That includes the tokenizers library: bare exceptions, and Rust panics, which are not an `Exception`.

    Raises:
      TokenizerError: instead of any other.
    """
    try:
        yield
    except (TokenizerError, MemoryError):
        raise
    except KeyError as error:
        raise TokenizerError(f"{source} has a form that we do not know: no {shown(error.args[0])} in it.") from error
    except Exception as error:
        raise TokenizerError(f"{source} has a form that we do not know ({reason_of(error)}).") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{source} cannot be used by the tokenizers library ({_panic(error)}).") from error


def _panic(error: BaseException) -> str:
    """The message of a Rust panic, in one line."""
    return shortened(" ".join(str(error).split()))


def token_id(value: Any, text: str) -> int:
    """A token id from a tokenizer file.

    Raises:
      TokenizerError: it is not a whole number, or larger than any vocabulary.
    """
    if type(value) is not int or not 0 <= value < MOST_TOKENS:
        raise TokenizerError(
            f"The token {shown(text)} has id {shown(value)}; expected a whole number from 0 to {MOST_TOKENS - 1}."
        )
    return value


def check_ids(largest: int, count: int, source: str) -> None:
    """Check that a table with an entry for each id is not mostly empty.

    Raises:
      TokenizerError: most of its entries would be empty.
    """
    if largest >= count + MOST_UNUSED_TOKENS:
        raise TokenizerError(
            f"{source} has a token with id {largest} and {count} tokens: "
            f"more than {MOST_UNUSED_TOKENS} ids would be unused."
        )


def check_lengths(tokens: Iterable[str | bytes], source: str) -> None:
    """Check that all splits of all tokens can be examined in reasonable time.

    Raises:
      TokenizerError: a token, or all tokens together, are longer than any in use.
    """
    total = 0
    for token in tokens:
        total += len(token)
        if len(token) > _MOST_TOKEN_LENGTH or total > _MOST_TEXT:
            raise TokenizerError(
                f"{source} has tokens of more than {_MOST_TOKEN_LENGTH} characters, "
                f"or of more than {_MOST_TEXT} together."
            )


def read_text(path: Path, *, most: int = MOST_BYTES) -> str:
    """The text of a file in UTF-8.

    Raises:
      TokenizerError: it is missing, not a regular file, too large, or not UTF-8.
    """
    try:
        return read_regular(path, most=most).decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} cannot be read: {reason_of(error)}.") from error


def find_tokenizer_file(folder: Path) -> Path:
    """The tokenizer file of a folder.

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
        f"{len(names)} files{' (' + ', '.join(names[:8]) + ')' if names else ''}. "
        "Download the tokenizer of the model into it, or name one explicitly."
    )


def find_sentencepiece(folder: Path) -> Path | None:
    """The sentencepiece model of a folder, the one with the highest version in its name; None where there is none."""
    models = {
        entry: int(match[1] or 0)
        for entry in sorted(folder.iterdir())
        if entry.is_file() and (match := SENTENCEPIECE_NAME.fullmatch(entry.name))
    }
    return max(models, key=models.__getitem__) if models else None


def read_json_object(path: Path, *, missing_ok: bool = False, vocabulary: bool = False) -> dict[str, Any]:
    """A JSON file whose top is an object; {} for an absent file if `missing_ok`.

    Args:
      path: the file.
      missing_ok: it need not be there.
      vocabulary: it lists a vocabulary, and may be large.
    Raises:
      TokenizerError: the file is absent, unreadable, too large, or not a JSON object.
    """
    most = MOST_VOCABULARY_BYTES if vocabulary else MOST_BYTES
    return json_file.read_json_object(path, error=TokenizerError, most=most, missing_ok=missing_ok)
