"""Options of the training commands, generated from the declarations in `mistral_jax.training.settings`."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from mistral_jax.training.settings import LoRATrainingSettings, TrainingSettings, XLoRATrainingSettings
from serving.commands.options import collected

_RENAMED = {"use_rslora": "rslora"}
"""Fields whose flag is shorter."""


def lora_training_options[C: Callable[..., Any]](command: C) -> C:
    """Collects the options of `train-lora` in one argument, `training`."""
    start = click.option(
        "start",
        "--start",
        metavar="ADAPTER",
        help="Adapter to train further: a LoRA folder or Hub id, with the same rank, alpha and targets.",
    )
    return _collected(command, LoRATrainingSettings, {"start": start})


def xlora_training_options[C: Callable[..., Any]](command: C) -> C:
    """Collects the options of `train-xlora` in one argument, `training`."""
    adapters = click.option(
        "adapters",
        "--adapter",
        metavar="NAME=PATH",
        multiple=True,
        help="An expert: its name, and a LoRA folder or Hub id; repeat it for several.",
    )
    return _collected(command, XLoRATrainingSettings, {"adapters": adapters})


def _collected[C: Callable[..., Any]](command: C, kind: type[TrainingSettings], more: dict[str, Any]) -> C:
    options: dict[str, Any] = {
        "data": click.option(
            "data",
            "--data",
            metavar="FILE",
            multiple=True,
            required=True,
            type=click.Path(path_type=Path),
            help='JSON lines: {"messages": […]}, {"prompt": …, "completion": …} or {"text": …}; repeat it for several.',
        ),
        "output": click.option(
            "output",
            "--output",
            metavar="FOLDER",
            required=True,
            type=click.Path(path_type=Path),
            help="Folder for the trained weights, the log (training_log.jsonl) and checkpoints.",
        ),
        "validation": click.option(
            "validation",
            "--validation",
            metavar="FILE",
            type=click.Path(path_type=Path),
            help="JSON lines to validate on; not trained on.",
        ),
        "resume": click.option("resume", "--resume", is_flag=True, help="Resume from the checkpoint in the folder."),
        "overwrite": click.option("overwrite", "--overwrite", is_flag=True, help="Replace what is in the folder."),
        **more,
    }
    hints = get_type_hints(kind, include_extras=True)
    for item in fields(kind):
        flag = "--" + _RENAMED.get(item.name, item.name).replace("_", "-")
        options[item.name] = _option(item.name, flag, hints[item.name], item.default)

    return collected(command, "training", options)


def _option(name: str, flag: str, hint: Any, default: Any) -> Any:
    assert get_origin(hint) is Annotated
    kind, text = get_args(hint)
    if get_origin(kind) in (Union, types.UnionType):  # X | None
        kind = get_args(kind)[0]
    if kind is bool:
        return click.option(
            name, f"{flag}/--no-{flag.removeprefix('--')}", default=default, show_default=True, help=text
        )
    if get_origin(kind) is tuple:
        return click.option(
            name,
            flag,
            default=",".join(default),
            show_default=True,
            metavar="LIST",
            help=text,
            callback=lambda _context, _option, value: tuple(part.strip() for part in value.split(",")),
        )
    if get_origin(kind) is Literal:
        kind = click.Choice(get_args(kind))
    return click.option(name, flag, default=default, show_default=default is not None, type=kind, help=text)
