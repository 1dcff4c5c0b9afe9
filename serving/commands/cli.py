"""The command `mistral-jax`: options, then a subcommand. See `serving.commands.options` for where options come from.

Nothing heavy is imported before a command runs, so `--help` is fast.
"""

from __future__ import annotations

import copy
import importlib
import itertools
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, cast

import click

from serving.commands.load_options import load_options, load_test, one_number, refuse_load_options, whole_numbers
from serving.commands.options import ANY_MODEL, GENERAL, MODEL_OR_DEMO, SEED_GENERAL, of_kind, options, takes_settings
from serving.commands.train_options import lora_training_options, xlora_training_options
from serving.settings.kinds import KINDS, Kind, ModelKind
from serving.settings.settings import Settings, SettingsError
from serving.version import DISTRIBUTION, version

Given = dict[str, "str | bool | Sequence[str] | None"]


_EPILOG = (
    "Every option can also be set by the environment variable shown in brackets; the command line wins. "
    "Lists in variables are separated by commas."
)


def main() -> NoReturn:
    """Run the command line and exit: 0 for success, 1 for a failure, 2 for invalid input. Errors are one line each."""
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 2
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        hint = f" (see `{context.command_path} --help`)" if isinstance(context, click.Context) else ""
        click.echo(f"Error: {error.format_message().rstrip('.')}{hint}", err=True)
        code = error.exit_code
    except click.Abort:
        click.echo("Interrupted.", err=True)
        code = 130
    except SettingsError as error:
        code = _complain(error, code=2)
    except Exception as error:
        code = _complain(error, code=1)
    sys.exit(code if isinstance(code, int) else 0)


def _complain(error: Exception, *, code: int) -> int:
    if _debugging():
        traceback.print_exception(error)
    text = " ".join(str(error).split()) or type(error).__name__
    known = isinstance(error, SettingsError | ValueError | OSError | RuntimeError)
    click.echo(f"Error: {text}" if known else f"Error: {type(error).__name__}: {text}", err=True)
    if not known and not _debugging():
        click.echo("This is a bug; run with --log-level debug for the details.", err=True)
    return code


def _debugging() -> bool:
    """Whether debug logging was requested; found without parsing, since the error may be in parsing."""
    arguments = sys.argv[1:]
    asked = "--log-level=debug" in arguments or ("--log-level", "debug") in itertools.pairwise(arguments)
    return asked or os.environ.get("MISTRAL_JAX_LOG_LEVEL", "").strip().lower() == "debug"


def _settings(context: click.Context, given: Given, kind: ModelKind | None = None, *, check: bool = True) -> Settings:
    """The settings of a command. With `check`, missing paths are refused before anything slow is imported."""
    merged: Given = {**cast("Given", context.obj or {})}
    merged.update({name: value for name, value in given.items() if value is not None and value != ()})
    settings = Settings.resolve(merged, kind=kind)
    if check:
        _later("settings.paths", "check_paths")(settings)
    return settings


@click.group(
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    help="Serve Mistral-family language models from JAX, behind the OpenAI HTTP API.\n\n"
    "General options come before the command, a command's own after it:\n\n"
    "  mistral-jax --port 8000 mistral --model-id ./my-model",
)
@click.version_option(version(), prog_name="mistral-jax")
@options(*GENERAL)
@options(*SEED_GENERAL, hidden=True)
@click.pass_context
def cli(context: click.Context, **given: Any) -> None:
    context.obj = given


_SUB_EPILOG = "The options of `mistral-jax --help` may be given here too, by their long names."


def _add_serving(kind: Kind) -> None:
    """Add the command that serves a kind of model, under its name and its alias."""

    @cli.command(kind.name, help=kind.summary, epilog=_SUB_EPILOG)
    @takes_settings(*of_kind(kind))
    @click.pass_context
    def serving(context: click.Context, **given: Any) -> int:
        return _serve(_settings(context, given, kind.name))

    if kind.other_name is not None:
        other = copy.copy(serving)
        other.hidden = True
        cli.add_command(other, kind.other_name)


for _kind in KINDS.values():
    _add_serving(_kind)


@cli.command(epilog=_SUB_EPILOG)
@takes_settings(*ANY_MODEL)
@click.option("--system", metavar="TEXT", help="System message that opens the conversation.")
@click.pass_context
def chat(context: click.Context, system: str | None, **given: Any) -> int:
    """Talk to a model in the terminal."""
    return _later("commands.chat", "run_chat")(_settings(context, given), system=system)


@cli.command(epilog=_SUB_EPILOG)
@takes_settings(*ANY_MODEL)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--offline", is_flag=True, help="Do not ask the Hub about files that are not in the cache.")
@click.pass_context
def doctor(context: click.Context, as_json: bool, offline: bool, **given: Any) -> int:
    """Show versions, devices and memory, and whether the model fits."""
    return _later("commands.doctor", "run_doctor")(
        _settings(context, given, check=False), as_json=as_json, offline=offline
    )


@cli.command(epilog=_SUB_EPILOG)
@takes_settings(*ANY_MODEL)
@click.option(
    "--rows", metavar="LIST", default="1,8", show_default=True, help="Numbers of sequences to decode together."
)
@click.option(
    "--prompt-tokens",
    metavar="INTEGER",
    default="512",
    show_default=True,
    help="Length of the prompts; with --url also a range, 64-1024.",
)
@click.option(
    "--answer-tokens",
    metavar="INTEGER",
    default="128",
    show_default=True,
    help="Tokens to decode; with --url also a range.",
)
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Measurements of each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@load_options
@click.pass_context
def bench(
    context: click.Context,
    rows: str,
    prompt_tokens: str,
    answer_tokens: str,
    repeats: int,
    as_json: bool,
    load: dict[str, Any],
    **given: Any,
) -> int:
    """Time prefill and decode, without the server; or, with --url, a server under load.

    The server may be any program with OpenAI's HTTP API. Requests are streamed completions of random words. Printed are
    rates, and the 50th, 90th and 99th percentile of the time to the first token, between tokens, and of whole requests.
    """
    if load["url"] is not None:
        test = load_test(load, given, prompt_tokens=prompt_tokens, answer_tokens=answer_tokens)
        return _later("commands.bench_url", "run_bench_url")(**test, as_json=as_json)
    refuse_load_options(load)
    counts = whole_numbers("--rows", rows)
    return _later("commands.bench", "run_bench")(
        _settings(context, given),
        rows=counts,
        prompt_tokens=one_number("--prompt-tokens", prompt_tokens),
        answer_tokens=one_number("--answer-tokens", answer_tokens),
        repeats=repeats,
        as_json=as_json,
    )


@cli.command()
@click.argument("source", metavar="FILE|FOLDER|HUB ID|demo")
@click.option("--tensors/--no-tensors", default=True, show_default=True, help="List every tensor.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def inspect(source: str, tensors: bool, as_json: bool) -> int:
    """Show what is in a model file or folder, or in a folder of LoRA or X-LoRA adapters.

    Metadata, tensors, types, bits per weight, and the memory that a model needs. Only headers are read; the files of a
    Hub id are downloaded first, unless they are in the cache.
    """
    return _later("commands.tools", "run_inspect")(source, as_json=as_json, tensors=tensors)


class _Convert(click.Command):
    """`convert`, with the subcommand `convert ordering`."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == ["ordering"]:
            return _convert_ordering.make_context(f"{info_name} ordering", args[1:], parent, **extra)
        return super().make_context(info_name, args, parent, **extra)


@click.command()
@click.argument("xlora_folder", type=click.Path(path_type=Path))
@click.argument("destination", metavar="OUT.json", type=click.Path(path_type=Path))
@click.option(
    "--base-model-id", metavar="TEXT", help="Hub id of the base model.  [default: what the X-LoRA model says]"
)
@click.option(
    "--order",
    metavar="NAMES",
    help="Names of the adapters, separated by commas, in the order of the classifier's outputs.  [default: that of "
    "the X-LoRA model]",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT.json.")
def _convert_ordering(
    xlora_folder: Path, destination: Path, base_model_id: str | None, order: str | None, overwrite: bool
) -> int:
    """Write the ordering file of an X-LoRA model.

    It maps the classifier's outputs to adapters and to modules. XLORA_FOLDER holds the model in the layout of the
    original library or of PEFT. mistral-jax needs no such file; mistral.rs does.
    """
    return _later("commands.tools", "run_convert_ordering")(
        xlora_folder,
        destination,
        base_model_id=base_model_id,
        order=None if order is None else tuple(name.strip() for name in order.split(",")),
        overwrite=overwrite,
    )


@cli.command(
    cls=_Convert,
    epilog="`mistral-jax convert ordering XLORA_FOLDER OUT.json` writes the ordering file of an X-LoRA model instead; "
    "see `mistral-jax convert ordering --help`. (For a model folder of that name, write ./ordering.)",
)
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option(
    "--type",
    metavar="TEXT",
    help="For a GGUF file: f32, f16, bf16, q8_0, q4_0, q4_1, q5_0, q5_1, q4_k, q4_k_m, q5_k, q5_k_m or q6_k "
    "[default: q8_0]. For a folder: f32, f16 or bf16 [default: as stored; bf16 for quantised files].",
)
@click.option("--name", metavar="TEXT", help="The model's name in a GGUF file.  [default: the folder's]")
@click.option("--overwrite", is_flag=True, help="Replace what has the name of DESTINATION.")
@click.pass_context
def convert(
    context: click.Context, source: str, destination: Path, type: str | None, name: str | None, overwrite: bool
) -> int:
    """Convert between model folders and GGUF files.

    SOURCE is a folder, a GGUF file or a Hub id. DESTINATION is a GGUF file if its name ends in .gguf, else a folder of
    safetensors, configuration and tokenizer. A GGUF file can also be converted to a GGUF file of another type.
    """
    cache = _settings(context, {}, check=False).compilation_cache_dir
    return _later("commands.tools", "run_convert")(
        source, destination, type=type, name=name, overwrite=overwrite, compilation_cache=cache
    )


@cli.command()
@click.argument("a")
@click.argument("b")
@click.option("--text", metavar="FILE", type=click.Path(path_type=Path), help="Compare predictions on this text.")
@click.option("--logits/--no-logits", default=True, show_default=True, help="Also compare predictions.")
@click.option("--max-tokens", type=click.IntRange(min=2), default=1024, show_default=True, help="Most tokens of text.")
@click.option("--dtype", metavar="TEXT", default="float32", show_default=True, help="Type to compute in.")
@click.option(
    "--quant",
    metavar="TEXT",
    default="auto",
    show_default=True,
    help="Quantisation of the weights in memory; auto: as stored.",
)
@click.option("--max-rms", metavar="NUMBER", type=float, help="Fail if a tensor's relative RMS difference is larger.")
@click.option("--max-kl", metavar="NUMBER", type=float, help="Fail if the mean KL divergence (nats) is larger.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def verify(context: click.Context, a: str, b: str, **given: Any) -> int:
    """Compare two models, whatever their formats.

    Configuration, each tensor, and predictions on a text. A and B are folders, GGUF files, safetensors files or Hub
    ids. The exit status is 1 if tensors do not match or a limit is exceeded.
    """
    cache = _settings(context, {}, check=False).compilation_cache_dir
    return _later("commands.tools", "run_verify")(a, b, compilation_cache=cache, **given)


@cli.command("train-lora")
@takes_settings(*MODEL_OR_DEMO)
@lora_training_options
@click.pass_context
def train_lora(context: click.Context, training: dict[str, Any], **given: Any) -> int:
    """Train a LoRA adapter on chat data.

    The base model is not changed. PEFT can load the output folder, and `lora-mistral --lora NAME=FOLDER` serves it.
    """
    return _train("run_train_lora", _settings(context, given), training)


@cli.command("train-xlora")
@takes_settings(*MODEL_OR_DEMO)
@xlora_training_options
@click.pass_context
def train_xlora(context: click.Context, training: dict[str, Any], **given: Any) -> int:
    """Train the classifier that mixes LoRA adapters (X-LoRA) on chat data.

    The base model is not changed, nor are the adapters, unless --adapter-learning-rate trains them too. They are
    written to the output folder with the classifier.
    """
    return _train("run_train_xlora", _settings(context, given), training)


def _train(function: str, settings: Settings, training: dict[str, Any]) -> int:
    _later("settings.paths", "check_training_files")(training)
    return _later("commands.train", function)(settings, training)


def _serve(settings: Settings) -> int:
    return _later("server", "run_server")(settings)


def _later(module: str, function: str) -> Callable[..., Any]:
    """A command's implementation, imported when it is called, after the settings are checked: it may import JAX."""

    def run(*arguments: Any, **named: Any) -> Any:
        try:
            found = getattr(importlib.import_module(f"serving.{module}"), function)
        except ModuleNotFoundError as error:
            if error.name == f"serving.{module}":
                raise click.UsageError("this command is not in this version yet") from error
            raise RuntimeError(
                f"the Python package {error.name} is missing; run `pip install {DISTRIBUTION}` again (in a clone: "
                "make serve)"
            ) from error
        return found(*arguments, **named)

    return run


if __name__ == "__main__":
    main()
