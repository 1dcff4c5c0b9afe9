"""The description of one setting: parsing from text, and checks. `serving.settings.settings` declares the settings."""

from __future__ import annotations

import dataclasses
import enum
import os
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Union

from conversion.files.regular_file import exists, is_file

ENV_PREFIX = "MISTRAL_JAX_"

_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})


class SettingsError(ValueError):
    """A flag or an environment variable has an invalid value. The message is one line, for the user."""


class TokenKind(enum.StrEnum):
    CACHE = "cache"
    ENV = "env"
    LITERAL = "literal"
    PATH = "path"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where the Hugging Face Hub token comes from. `str` and `repr` never show the token."""

    kind: TokenKind = TokenKind.CACHE
    value: str = ""
    """`env`: the variable's name; `literal`: the token; `path`: the file that holds it."""

    @classmethod
    def parse(cls, text: str) -> TokenSource:
        """Read `cache`, `env`, `env:NAME`, `literal:VALUE`, `path:FILE` or `none`."""
        head, colon, value = text.partition(":")
        bare = head in (TokenKind.CACHE, TokenKind.NONE, TokenKind.ENV) and not colon
        with_value = head in (TokenKind.ENV, TokenKind.LITERAL, TokenKind.PATH) and value
        if not bare and not with_value:
            raise ValueError("cache, env, env:NAME, literal:VALUE, path:FILE or none")
        return cls(TokenKind(head), value or ("HF_TOKEN" if head == TokenKind.ENV else ""))

    def token(self) -> str | bool | None:
        """The `token` argument of huggingface_hub: the token itself, None for its own cache, False for no token.

        Raises:
          SettingsError: the variable is not set, or the file cannot be read or is empty.
        """
        match self.kind:
            case TokenKind.CACHE:
                return None
            case TokenKind.NONE:
                return False
            case TokenKind.LITERAL:
                return self.value
            case TokenKind.ENV:
                if token := os.environ.get(self.value, "").strip():
                    return token
                raise SettingsError(f"--token-source {self}: the environment variable {self.value} is not set")
            case TokenKind.PATH:
                try:
                    token = Path(self.value).expanduser().read_text(encoding="utf-8").strip()
                except (OSError, UnicodeDecodeError) as error:
                    reason = error.strerror if isinstance(error, OSError) else "not a text file"
                    raise SettingsError(f"--token-source {self}: cannot read the file: {reason}") from error
                if not token:
                    raise SettingsError(f"--token-source {self}: the file is empty")
                return token

    def __str__(self) -> str:
        value = "***" if self.kind is TokenKind.LITERAL else self.value
        return f"{self.kind}:{value}" if value else str(self.kind)

    __repr__ = __str__


@dataclass(frozen=True, kw_only=True, slots=True)
class Option:
    """A setting's declaration, apart from its name, type and default."""

    flags: tuple[str, ...]
    help: str
    default_text: str = ""
    """The default in words, for values (often None) that do not explain themselves."""
    low: float | None = None
    high: float | None = None
    pattern: str = ""
    """Regular expression that the whole text must match; `expects` describes it in words."""
    expects: str = ""
    kinds: tuple[str, ...] = ()
    """The model kinds that the setting belongs to; empty: a general option, given before the command."""
    secret: bool = False
    """Never printed."""
    cli: bool = True
    """False: the command determines it, so there is only an environment variable."""


@dataclass(frozen=True, slots=True)
class SettingSpec:
    """One declared setting. Its flag, environment variable, help and checks are derived from it."""

    name: str
    option: Option
    type: Any
    """The type without `None`: bool, int, float, str, Path, TokenSource, a Literal, or tuple[str | Path, ...]."""
    default: Any

    @property
    def env(self) -> str:
        return ENV_PREFIX + self.name.upper()

    @property
    def is_flag(self) -> bool:
        return self.type is bool

    @property
    def is_list(self) -> bool:
        return typing.get_origin(self.type) is tuple

    @property
    def expected(self) -> str:
        """A description of valid values, to follow "expected"."""
        option = self.option
        if option.expects:
            return option.expects
        if typing.get_origin(self.type) is Literal:
            return "one of " + ", ".join(typing.get_args(self.type))
        if self.type is bool:
            return "true or false"
        if self.type in (int, float):
            kind = "an integer" if self.type is int else "a number"
            if option.low is not None and option.high is not None:
                return f"{kind} from {option.low:g} to {option.high:g}"
            return f"{kind} of at least {option.low:g}" if option.low is not None else kind
        return "a text"

    def parse(self, text: str | bool | Sequence[str], *, source: str) -> Any:
        """Parse and check a value. A list is one comma-separated string or a sequence of strings.

        Raises:
          SettingsError: it is invalid; the message names `source` (the flag or variable), the value and what is
            expected.
        """
        try:
            return self.checked(self._convert(text))
        except ValueError as error:
            shown = "***" if self.option.secret or self.type is TokenSource else repr(text)
            detail = str(error) if isinstance(error, _RefusedError) else self.expected
            raise SettingsError(f"{source}: {shown} is not valid; expected {detail}") from error

    def checked(self, value: Any) -> Any:
        """The value, unchanged.

        Raises:
          ValueError: it is out of range.
        """
        option = self.option
        if value is None:
            return value
        if isinstance(value, int | float) and not isinstance(value, bool):
            too_low = option.low is not None and not value >= option.low
            if too_low or (option.high is not None and not value <= option.high):
                raise ValueError(f"expected {self.expected}")
        for item in value if isinstance(value, tuple) else (value,):
            if option.pattern and not re.fullmatch(option.pattern, str(item)):
                raise ValueError(f"expected {self.expected}")
        if typing.get_origin(self.type) is Literal and value not in typing.get_args(self.type):
            raise ValueError(f"expected {self.expected}")
        return value

    def show(self, value: Any) -> str:
        """The value as text for display, with secrets hidden."""
        if value is None or value == ():
            return self.option.default_text or "none"
        if self.option.secret:
            return "***"
        if isinstance(value, tuple):
            return ", ".join(str(item) for item in value)
        return str(value).lower() if isinstance(value, bool) else str(value)

    def _convert(self, text: str | bool | Sequence[str]) -> Any:
        if self.is_list:
            item_type = typing.get_args(self.type)[0]
            items = text.split(",") if isinstance(text, str) else list(typing.cast("Sequence[str]", text))
            return tuple(item_type(item.strip()) for item in items if item.strip())
        if isinstance(text, bool):
            return text
        text = typing.cast("str", text).strip()
        if self.type is bool:
            if text.lower() in _TRUE:
                return True
            if text.lower() in _FALSE:
                return False
            raise ValueError
        if self.type is TokenSource:
            try:
                return TokenSource.parse(text)
            except ValueError as error:
                raise _RefusedError(str(error)) from error
        if self.type is Path:
            return Path(text).expanduser()
        if typing.get_origin(self.type) is Literal:
            return text.lower()
        return self.type(text)


class _RefusedError(ValueError):
    """An invalid value whose error message replaces `SettingSpec.expected`."""


def specs_of(cls: type) -> tuple[SettingSpec, ...]:
    """The settings that a dataclass declares: its fields of the form `name: Annotated[type, Option(...)] = default`."""
    hints = typing.get_type_hints(cls, include_extras=True)
    specs: list[SettingSpec] = []
    for field in dataclasses.fields(cls):
        annotated, *metadata = typing.get_args(hints[field.name])
        option = next(item for item in metadata if isinstance(item, Option))
        specs.append(SettingSpec(field.name, option, _without_none(annotated), field.default))
    return tuple(specs)


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        (inner,) = (arg for arg in typing.get_args(annotation) if arg is not types.NoneType)
        return inner
    return annotation


def local_name(name: str) -> str:
    """The last part of an existing path, without a `.gguf` suffix; other names unchanged.

    Links are resolved for folders but not for files: in the Hub's cache, files are links to targets named by hashes.
    """
    path = Path(name).expanduser()
    try:
        if is_file(path):
            return path.name.removesuffix(".gguf")
        return path.resolve().name if exists(path) else name
    except OSError:
        return name
