"""Mistral's tekken.json as data: ranked byte strings, the control tokens in front of them, and the word split."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from conversion.config.model_sizes import MOST_TOKENS
from conversion.files.json_fields import JSONFields
from conversion.tokenizer.files import TokenizerError, check_lengths, known_form, read_json_object, token_id

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


@dataclass(frozen=True, slots=True)
class ReasoningEfforts:
    """A model's setting of how much it reasons."""

    values: tuple[str, ...]
    default: str


@dataclass(frozen=True, kw_only=True)
class TekkenFile:
    """A tekken vocabulary."""

    ranks: list[bytes]
    """The byte strings that the vocabulary takes, in the order of their ranks; an id is a rank plus `len(control)`."""
    control: list[str]
    """Texts of the control tokens, by id."""
    pattern: str
    """The regular expression that splits text into words."""
    version: str
    """Mistral's version of the instruct format, such as "v3"."""
    efforts: ReasoningEfforts | None = None
    """The reasoning efforts that the model knows (v15); None: it has no such setting."""

    @property
    def size(self) -> int:
        return len(self.control) + len(self.ranks)


def read_tekken(path: Path) -> TekkenFile:
    """Reads tekken.json.

    Raises:
      TokenizerError: the file is absent, truncated, or of an unknown form.
    """
    data = JSONFields(read_json_object(path, vocabulary=True), error=TokenizerError, source=str(path))
    config = data.object("config")
    if config is None:
        raise data.wrong("config", "an object")
    version, pattern = config.text("version"), config.text("pattern")
    if version is None or pattern is None:
        raise config.wrong("version" if version is None else "pattern", "a text")
    size = config.whole("default_vocab_size", most=MOST_TOKENS)
    num_control = config.whole("default_num_special_tokens", least=0, most=size)
    with known_form(str(path)):
        # Files list more entries than the vocabulary uses: the rest was trained but is not used.
        entries = cast("list[dict[str, Any]]", data.list("vocab") or [])[: size - num_control]
        ranks = [base64.b64decode(entry["token_bytes"], validate=True) for entry in entries]
        in_order = all(type(entry["rank"]) is int and entry["rank"] == i for i, entry in enumerate(entries))
        control = _control_texts(data.list("special_tokens"), num_control, version)
    check_lengths(ranks, str(path))
    if len(ranks) != size - num_control or not in_order:
        raise TokenizerError(
            f"{path} promises {size - num_control} ranked tokens and lists {len(ranks)}, "
            "or not in the order of their ranks. Was the download cut short? Fetch it again."
        )
    efforts = _reasoning_efforts(data)
    return TekkenFile(ranks=ranks, control=control, pattern=pattern, version=version, efforts=efforts)


def _reasoning_efforts(data: JSONFields) -> ReasoningEfforts | None:
    settings = data.object("model_settings_builder")
    effort = None if settings is None else settings.object("reasoning_effort")
    if effort is None:
        return None
    values, default = effort.texts("values") or (), effort.text("default")
    if default is None or default not in values:
        raise effort.wrong("default", "one of its values")
    return ReasoningEfforts(values, default)


def _control_texts(listed: object, count: int, version: str) -> list[str]:
    """All control tokens by id: the listed ones, then fillers."""
    if listed is None:
        if version not in _VERSIONS_WITHOUT_LIST:
            raise ValueError(f"a vocabulary of version {version} must list its special_tokens")
        texts = list(_BUILT_IN)
    else:
        entries = sorted(cast("list[dict[str, Any]]", listed), key=lambda entry: token_id(entry["rank"], "of a rank"))
        texts = [str(entry["token_str"]) for entry in entries]
        if [entry["rank"] for entry in entries] != list(range(len(entries))):
            raise ValueError("the ranks of its special_tokens have gaps")
    if len(texts) > count:
        raise ValueError(f"it lists {len(texts)} special tokens and has room for {count}")
    return texts + [f"<SPECIAL_{i}>" for i in range(len(texts), count)]
