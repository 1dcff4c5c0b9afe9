"""Mistral's tekken.json as data: ranked byte strings, the control tokens in front of them, and how words are cut."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from conversion.tokenizer.files import TokenizerError, read_json_object

# The control tokens of files that list none (versions up to 7), by their ids.
_BUILT_IN = (
    *("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]"),
    *(
        "[/TOOL_RESULTS]",
        "[TOOL_CALLS]",
        "[IMG]",
        "<pad>",
        "[IMG_BREAK]",
        "[IMG_END]",
        "[PREFIX]",
        "[MIDDLE]",
        "[SUFFIX]",
    ),
    *("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"),
)
_VERSIONS_WITHOUT_LIST = ("v1", "v2", "v3", "v7")


@dataclass(frozen=True, kw_only=True)
class TekkenFile:
    """A tekken vocabulary."""

    ranks: list[bytes]
    """The byte strings that the vocabulary takes, in the order of their ranks; an id is a rank plus `len(control)`."""
    control: list[str]
    """Texts of the control tokens, by id."""
    pattern: str
    """The regular expression that cuts text into words."""
    version: str
    """Mistral's version of the instruct format, such as "v3"."""

    @property
    def size(self) -> int:
        return len(self.control) + len(self.ranks)


def read_tekken(path: Path) -> TekkenFile:
    """Reads tekken.json.

    Raises:
      TokenizerError: the file is absent, cut short, or of a form that we do not know.
    """
    data = read_json_object(path)
    try:
        config = cast("dict[str, Any]", data["config"])
        version, pattern = str(config["version"]), str(config["pattern"])
        size, num_control = int(config["default_vocab_size"]), int(config["default_num_special_tokens"])
        # Files list more entries than the vocabulary takes: the rest was trained but is not used.
        entries = cast("list[dict[str, Any]]", data["vocab"])[: size - num_control]
        ranks = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
        control = _control_texts(data.get("special_tokens"), num_control, version)
    except (KeyError, TypeError, IndexError, binascii.Error, ValueError) as error:
        detail = f"no {error} in it" if isinstance(error, KeyError) else str(error)
        raise TokenizerError(f"{path} is no tekken vocabulary that we can read: {detail}.") from error
    if len(ranks) != size - num_control or any(entry["rank"] != i for i, entry in enumerate(entries)):
        raise TokenizerError(
            f"{path} promises {size - num_control} ranked tokens and lists {len(ranks)}, or not in the order of "
            "their ranks. "
            "Was the download cut short? Fetch it again."
        )
    return TekkenFile(ranks=ranks, control=control, pattern=pattern, version=version)


def _control_texts(listed: object, count: int, version: str) -> list[str]:
    """All control tokens by id: the listed ones, then fillers."""
    if listed is None:
        if version not in _VERSIONS_WITHOUT_LIST:
            raise ValueError(f"a vocabulary of version {version} must list its special_tokens")
        texts = list(_BUILT_IN)
    else:
        entries = sorted(cast("list[dict[str, Any]]", listed), key=lambda entry: int(entry["rank"]))
        texts = [str(entry["token_str"]) for entry in entries]
        if [int(entry["rank"]) for entry in entries] != list(range(len(entries))):
            raise ValueError("the ranks of its special_tokens have gaps")
    if len(texts) > count:
        raise ValueError(f"it lists {len(texts)} special tokens and has room for {count}")
    return texts + [f"<SPECIAL_{i}>" for i in range(len(texts), count)]
