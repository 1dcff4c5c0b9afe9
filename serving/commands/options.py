"""Command-line options, generated from the declarations in `serving.settings.settings`, and which command has which."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import click

from serving.settings.kinds import KINDS, Kind
from serving.settings.settings import SPECS
from serving.settings.spec import SettingSpec

_Command = TypeVar("_Command", bound=Callable[..., Any])


def of_kind(kind: Kind, **default_texts: str) -> tuple[SettingSpec, ...]:
    """The options of a kind of model; `default_texts` replaces the texts of some defaults."""
    defaults = {**kind.default_texts, **default_texts}
    found = (spec for spec in SPECS if spec.option.cli and kind.name in spec.option.kinds)
    return tuple(
        replace(spec, option=replace(spec.option, default_text=defaults[spec.name])) if spec.name in defaults else spec
        for spec in found
    )


GENERAL = tuple(spec for spec in SPECS if spec.option.cli and not spec.option.kinds)
_MODEL = of_kind(KINDS["mistral"])
MODEL_OR_DEMO = (
    *of_kind(KINDS["mistral"], model_id="the bundled demo"),
    *(
        replace(spec, option=replace(spec.option, flags=spec.option.flags[:1], default_text="none"))
        for spec in of_kind(KINDS["gguf-mistral"])
        if spec not in _MODEL
    ),
)
"""The options of a model, and those that name a GGUF file, for commands that use the bundled model by default."""
ANY_MODEL = (
    *MODEL_OR_DEMO,
    *(
        replace(spec, option=replace(spec.option, flags=spec.option.flags[:1]))
        for spec in of_kind(KINDS["x-lora-mistral"], xlora_model_id="none")
        if spec.name not in {other.name for other in _MODEL}
    ),
)
"""The same, with adapters."""
SEED_GENERAL = tuple(spec for spec in SPECS if spec.name == "xlora_kv_cache")
"""X-LoRA options that may also come before the command."""


def collected[C: Callable[..., Any]](command: C, argument: str, options: Mapping[str, Callable[..., Any]]) -> C:
    """Add click options to a command, and pass their values in one argument, a dictionary.

    Args:
      options: by the names that click gives their values.
    """

    @functools.wraps(command)
    def collecting(*arguments: Any, **given: Any) -> Any:
        found = {name: given.pop(name) for name in options}
        return command(*arguments, **{argument: found}, **given)

    decorated: Any = collecting
    for option in reversed(list(options.values())):
        decorated = option(decorated)
    return decorated


def option_for(spec: SettingSpec, *, short: bool = True, hidden: bool = False) -> Callable[[_Command], _Command]:
    """A click option for a setting. Its value stays a string: `Settings.resolve` parses it, like the variables."""
    flags = [flag for flag in spec.option.flags if short or flag.startswith("--")]
    default = spec.option.default_text or spec.show(spec.default)
    arguments: dict[str, Any] = {
        "help": f"{spec.option.help}  [default: {default}; env: {spec.env}]",
        "default": None,
        "hidden": hidden,
        "expose_value": True,
    }
    if spec.is_flag:
        name = spec.option.flags[0]
        flags[0] = f"{name}/--no-{name.removeprefix('--')}"
        arguments["is_flag"] = True
    elif spec.is_list:
        arguments |= {"multiple": True, "metavar": "TEXT"}
    else:
        arguments["metavar"] = _metavar(spec)
    return click.option(spec.name, *flags, **arguments)


def _metavar(spec: SettingSpec) -> str:
    choices = spec.expected.removeprefix("one of ")
    if choices != spec.expected:
        return "[" + choices.replace(", ", "|") + "]"
    return {int: "INTEGER", float: "NUMBER"}.get(spec.type, "FILE" if spec.name == "log" else "TEXT")


def options(*specs: SettingSpec, short: bool = True, hidden: bool = False) -> Callable[[_Command], _Command]:
    def decorate(command: _Command) -> _Command:
        for spec in reversed(specs):
            command = option_for(spec, short=short, hidden=hidden)(command)
        return command

    return decorate


def takes_settings(*specs: SettingSpec) -> Callable[[_Command], _Command]:
    """Add a subcommand's own settings, and every general one by its long flag, so that options may come last."""

    def decorate(command: _Command) -> _Command:
        return options(*specs)(options(*GENERAL, short=False, hidden=True)(command))

    return decorate
