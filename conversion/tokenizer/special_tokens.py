"""The side files of a tokenizer: which tokens are special, which were added, and whether a prompt starts with BOS."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from conversion.files.json_fields import shown
from conversion.files.regular_file import quoted
from conversion.tokenizer.files import TokenizerError, read_json_object, token_id

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
_TURN_MARKER = re.compile(r"<\|.*\|>", re.DOTALL)
_NOTHING: Mapping[str, Any] = {}


def is_turn_marker(text: str) -> bool:
    """Whether a token looks like the `<|turn markers|>` of chat formats."""
    return _TURN_MARKER.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that was added to a vocabulary after its training."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The contents of tokenizer_config.json, special_tokens_map.json and added_tokens.json; empty where there are
    none."""

    names: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    """Texts by name, such as {"bos_token": "<s>", "pad_token": None}; a name that no file mentions is absent."""

    others: frozenset[str] = frozenset()
    """Texts of additional (extra) special tokens and of all named tokens: each of them is a control token."""

    added: tuple[AddedToken, ...] = ()
    """Added tokens in the order of their ids."""

    add_bos: bool | None = None
    """`add_bos_token`; None where no file says."""

    def is_control(self, token: AddedToken) -> bool:
        """Whether an added token is a control token rather than text.

        Besides the tokens flagged as special these are the `<|turn markers|>` of chat formats, which some repositories
        forget to flag. Others that are not flagged, such as `<think>` or runs of spaces, are text: they appear in a
        model's output.
        """
        return token.special or token.text in self.others or is_turn_marker(token.text)

    def name_id(self, name: str, ids: Mapping[str, int], default: int | None) -> int | None:
        """The id of a named token, or `default` where no file names one.

        Raises:
          TokenizerError: a file names a token that the vocabulary lacks (unknown pad tokens are ignored).
        """
        if name not in self.names:
            return default
        text = self.names[name]
        if text is None:
            return None
        if text in ids:
            return ids[text]
        if name in ("bos_token", "eos_token"):
            raise TokenizerError(
                f"The tokenizer's settings name {quoted(text)} as {name}, but the vocabulary has no "
                "such token. Fetch tokenizer.json, tokenizer_config.json and special_tokens_map.json "
                "again, all from the same repository."
            )
        return default


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Reads the side files that a folder has.

    Raises:
      TokenizerError: a file is not a JSON object, or its entries have a wrong type.
    """
    names = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
    config, special_map, added = (read_json_object(folder / name, missing_ok=True) for name in names)
    return special_tokens(config, special_map=special_map, added_tokens=added)


def special_tokens(
    config: Mapping[str, Any],
    *,
    special_map: Mapping[str, Any] = _NOTHING,
    added_tokens: Mapping[str, Any] = _NOTHING,
) -> SpecialTokens:
    """The contents of the parsed side files of a tokenizer.

    Args:
      config: tokenizer_config.json, which takes precedence over the other two.
      special_map: special_tokens_map.json.
      added_tokens: added_tokens.json: ids by text.

    Raises:
      TokenizerError: their entries have a wrong type.
    """
    names: dict[str, str | None] = {}
    others: set[str] = set()
    for source in (special_map, config):
        names.update({name: _token_text(source[name], name) for name in _NAMES if name in source})
        for key in ("additional_special_tokens", "extra_special_tokens"):
            others.update(text for item in _listed(source, key) if (text := _token_text(item, key)) is not None)
    others.update(text for text in names.values() if text is not None)

    added: dict[int, AddedToken] = {}
    for text, value in added_tokens.items():
        added[_as_id(value, text)] = AddedToken(id=_as_id(value, text), text=text, special=False)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError("added_tokens_decoder in tokenizer_config.json is not an object from ids to tokens.")
    for key, entry in cast("dict[str, Any]", decoder).items():
        text = _token_text(entry, f"added_tokens_decoder[{key}]")
        if text is not None:
            special = isinstance(entry, dict) and bool(cast("dict[str, Any]", entry).get("special", False))
            added[_as_id(key, text)] = AddedToken(id=_as_id(key, text), text=text, special=special)

    add_bos = config.get("add_bos_token")
    return SpecialTokens(
        names=names,
        others=frozenset(others),
        added=tuple(added[i] for i in sorted(added)),
        add_bos=add_bos if isinstance(add_bos, bool) else None,
    )


def _listed(source: Mapping[str, Any], key: str) -> list[Any]:
    """The entries of a list of tokens, or of an object from names to tokens."""
    value = source.get(key) or []
    if isinstance(value, (list, dict)):
        return list(cast("dict[str, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value))
    raise TokenizerError(f"{key} in the tokenizer's settings is {shown(value)}; expected a list of tokens.")


def _token_text(value: object, where: str) -> str | None:
    """A token given as its text or as an object with a "content"."""
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("content")
    if value is None or isinstance(value, str):
        return value or None
    raise TokenizerError(
        f"{where} in the tokenizer's settings is {shown(value)}; expected a text or an object with a content."
    )


def _as_id(value: object, text: str) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 20:
        value = int(value)
    return token_id(value, text)
