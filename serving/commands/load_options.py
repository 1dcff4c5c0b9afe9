"""The options of `mistral-jax bench --url`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from serving.commands.options import collected
from serving.load.workload import Lengths, Load, Range


def _option(name: str, metavar: str, help: str, **more: Any) -> tuple[str, Callable[..., Any]]:
    return name, click.option(name, _flag(name), metavar=metavar, help=f"With --url: {help}", **more)


def load_options[C: Callable[..., Any]](command: C) -> C:
    """Collects the options in one argument, `load`."""
    url = click.option(
        "url", "--url", metavar="URL", help="Put load on the server there, such as http://localhost:1234."
    )
    standard = click.option(
        "only_standard_fields",
        "--only-standard-fields",
        is_flag=True,
        help="With --url: do not send ignore_eos, which OpenAI does not know; completions may then be shorter.",
    )
    clients = "numbers of clients that each wait for an answer before they ask again.  [default: 1,8]"
    rate = "requests per second instead, at random times, whether those before have ended or not."
    prefix = "tokens that some prompts begin with, the same for all of them.  [default: 0]"
    drawn = "draw the distributions to FILE (svg, png or pdf); needs matplotlib."
    options = dict(
        [
            ("url", url),
            _option("clients", "LIST", clients),
            _option("rate", "LIST", rate),
            _option("requests", "INTEGER", "requests of each measurement.  [default: 64]"),
            _option("warm_up", "INTEGER", "requests before, not counted.  [default: 4]"),
            _option("shared_prefix", "INTEGER", prefix),
            _option("shared_part", "NUMBER", "the part of the prompts that begin with these, 0 to 1.  [default: 0.5]"),
            _option("seed", "INTEGER", "of prompts and times.  [default: 0]"),
            _option("served_model", "NAME", "model to ask for.  [default: the first listed]"),
            _option("bearer", "KEY", "API key.  [env: OPENAI_API_KEY]", envvar="OPENAI_API_KEY"),
            _option("wait", "SECONDS", "silence after which a request has failed.  [default: 600]"),
            ("only_standard_fields", standard),
            _option("plot", "FILE", drawn, type=click.Path(path_type=Path)),
        ]
    )
    return collected(command, "load", options)


def refuse_load_options(load: Mapping[str, Any]) -> None:
    """Options of a load test mean nothing without a server.

    Raises:
      click.UsageError: names one that was given.
    """
    for name, value in load.items():
        if name != "bearer" and value not in (None, False):
            raise click.UsageError(f"{_flag(name)} needs --url, the server to put load on")


def load_test(
    load: Mapping[str, Any], others: Mapping[str, Any], *, prompt_tokens: str, answer_tokens: str
) -> dict[str, Any]:
    """The arguments of `serving.commands.bench_url.run_bench_url`, but for `as_json`.

    Args:
      others: the command's options of models, which mean nothing for a server that runs already.
    Raises:
      click.UsageError, click.BadParameter: something does not fit.
    """
    for name, value in others.items():
        if value not in (None, ()):
            raise click.UsageError(f"{_flag(name)} means nothing with --url: the server has its model already")
    if not load["url"].startswith(("http://", "https://")):
        raise click.BadParameter(f"{load['url']!r}; expected http://HOST:PORT or https://…", param_hint="--url")
    if load["clients"] is not None and load["rate"] is not None:
        raise click.UsageError("--clients and --rate are two ways of putting load on a server; give one of them")

    def length(flag: str, text: str) -> Range:
        try:
            return Range.parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error), param_hint=flag) from None

    rates = () if load["rate"] is None else _numbers("--rate", load["rate"], float)
    clients = () if rates else _numbers("--clients", load["clients"] or "1,8", int)
    lengths = Lengths(
        prompt=length("--prompt-tokens", prompt_tokens),
        answer=length("--answer-tokens", answer_tokens),
        shared_prefix=_number("--shared-prefix", load["shared_prefix"], 0, int, least=0),
        shared_part=_number("--shared-part", load["shared_part"], 0.5, float, least=0, most=1),
    )
    return {
        "url": load["url"],
        "load": Load(
            lengths=lengths,
            clients=clients,
            rates=rates,
            requests=_number("--requests", load["requests"], 64, int),
            warm_up=_number("--warm-up", load["warm_up"], 4, int, least=0),
            seed=_number("--seed", load["seed"], 0, int, least=0),
        ),
        "model": load["served_model"],
        "key": load["bearer"],
        "timeout": _number("--wait", load["wait"], 600.0, float, least=0.001),
        "extensions": not load["only_standard_fields"],
        "plot_file": load["plot"],
    }


def whole_numbers(flag: str, text: str) -> tuple[int, ...]:
    """Positive whole numbers separated by commas.

    Raises:
      click.BadParameter: something else.
    """
    return _numbers(flag, text, int)


def one_number(flag: str, text: str) -> int:
    """A positive whole number.

    Raises:
      click.BadParameter: something else; a range is for load tests.
    """
    return _number(flag, text, 1, int)


def _numbers[N: (int, float)](flag: str, text: str, kind: type[N]) -> tuple[N, ...]:
    try:
        found = tuple(kind(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < number < math.inf for number in found):
        raise click.BadParameter(
            f"{text!r} is not valid; expected positive numbers separated by commas", param_hint=flag
        )
    return found


def _number[N: (int, float)](
    flag: str, text: str | None, default: N, kind: type[N], *, least: float = 1, most: float = math.inf
) -> N:
    if text is None:
        return default
    try:
        found = kind(text)
    except ValueError:
        found = math.nan
    if not least <= found <= most or math.isinf(found):
        span = f"from {least:g} to {most:g}" if most < math.inf else f"of at least {least:g}"
        what = "a whole number" if kind is int else "a number"
        raise click.BadParameter(f"{text!r} is not valid; expected {what} {span}", param_hint=flag)
    return kind(found)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
