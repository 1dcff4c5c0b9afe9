"""The side files of a tokenizer: which tokens are special, which were added, and whether a prompt starts with BOS."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from mistral_jax.tokenizer.base import TokenizerError

_NAMES = ("bos_token", "eos_token", "unk_token", "pad_token", "cls_token", "sep_token", "mask_token")
_TURN_MARKER = re.compile(r"<\|.*\|>", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class AddedToken:
    """A token that was added to a vocabulary after its training."""

    id: int
    text: str
    special: bool


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """What tokenizer_config.json, special_tokens_map.json and added_tokens.json say; empty where there are none."""

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
        forget to flag. Others that are not flagged, such as `<think>` or runs of spaces, are text: they appear in what
        a model says.
        """
        return token.special or token.text in self.others or _TURN_MARKER.fullmatch(token.text) is not None

    def name_id(self, name: str, ids: Mapping[str, int], default: int | None) -> int | None:
        """The id of a named token, or `default` where no file names one.

        Raises:
          TokenizerError: a file names a token that the vocabulary lacks (unknown pad tokens are passed over).
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
                f"The tokenizer's settings name {text!r} as {name}, but the vocabulary has no such token. Fetch "
                "tokenizer.json, "
                "tokenizer_config.json and special_tokens_map.json again, all from the same repository."
            )
        return default


def read_special_tokens(folder: Path) -> SpecialTokens:
    """Reads the side files that a folder has.

    tokenizer_config.json wins over special_tokens_map.json and added_tokens.json.

    Raises:
      TokenizerError: a file is no JSON object, or its entries have the wrong kind.
    """
    config = read_json_object(folder / "tokenizer_config.json", missing_ok=True)
    special_map = read_json_object(folder / "special_tokens_map.json", missing_ok=True)
    names: dict[str, str | None] = {}
    others: set[str] = set()
    for source in (special_map, config):
        names.update({name: _token_text(source[name], name) for name in _NAMES if name in source})
        for key in ("additional_special_tokens", "extra_special_tokens"):
            others.update(text for item in _listed(source, key) if (text := _token_text(item, key)) is not None)
    others.update(text for text in names.values() if text is not None)

    added: dict[int, AddedToken] = {}
    for text, token_id in read_json_object(folder / "added_tokens.json", missing_ok=True).items():
        added[_as_id(token_id, text)] = AddedToken(id=_as_id(token_id, text), text=text, special=False)
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, dict):
        raise TokenizerError("added_tokens_decoder in tokenizer_config.json is no object from ids to tokens.")
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


def _listed(source: dict[str, Any], key: str) -> list[Any]:
    """The entries of a list of tokens, or of an object from names to tokens."""
    value = source.get(key) or []
    if isinstance(value, (list, dict)):
        return list(cast("dict[str, Any]", value).values() if isinstance(value, dict) else cast("list[Any]", value))
    raise TokenizerError(f"{key} in the tokenizer's settings is {value!r}; expected a list of tokens.")


def _token_text(value: object, where: str) -> str | None:
    """A token given as its text or as an object with a "content"."""
    if isinstance(value, dict):
        value = cast("dict[str, object]", value).get("content")
    if value is None or isinstance(value, str):
        return value or None
    raise TokenizerError(
        f"{where} in the tokenizer's settings is {value!r}; expected a text or an object with a content."
    )


def _as_id(value: object, text: str) -> int:
    if isinstance(value, (int, str)) and not isinstance(value, bool):
        try:
            number = int(value)
        except ValueError:
            number = -1
        if number >= 0:
            return number
    raise TokenizerError(f"The added token {text!r} has id {value!r}; expected a whole number of 0 or more.")
