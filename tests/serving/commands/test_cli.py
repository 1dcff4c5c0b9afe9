"""The command line: complete help, one-line errors, exit codes, and settings that arrive."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from click.testing import CliRunner

import serving.commands.cli
import serving.settings.paths
from serving.commands.cli import cli
from serving.settings.settings import SPECS, Settings
from tests.cpu_time import cpu_seconds_at_most


def run(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    """`mistral-jax` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "serving.commands.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"PATH": "", **(env or {})},
    )
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """The settings with which a command would serve."""
    seen: list[Settings] = []

    def serve(settings: Settings) -> int:
        seen.append(settings)
        return 0

    monkeypatch.setattr(serving.commands.cli, "_serve", serve)
    # What these tests name is nowhere.
    monkeypatch.setattr(serving.settings.paths, "check_paths", lambda settings: None)
    for spec in SPECS:
        monkeypatch.delenv(spec.env, raising=False)
    return seen


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(cli, arguments, catch_exceptions=False)


def test_help_shows_every_general_setting_with_default_and_variable() -> None:
    text = " ".join(invoke("--help").output.split())
    for spec in SPECS:
        if spec.option.cli and not spec.option.kinds:
            assert all(flag in text for flag in spec.option.flags), spec.name
            assert f"env: {spec.env}]" in text, spec.name
            assert (spec.option.default_text or spec.show(spec.default)) in text, spec.name
    for command in ("demo", "mistral", "gguf-mistral", "x-lora-mistral", "chat", "doctor", "bench"):
        assert command in text


KINDS = {
    "mistral": {"mistral"},
    "gguf-mistral": {"gguf-mistral"},
    "mistral-gguf": {"gguf-mistral"},
    "x-lora-mistral": {"x-lora-mistral"},
    "x-lora-mistral-gguf": {"x-lora-gguf-mistral"},
    "lora-mistral": {"lora-mistral"},
    "lora-gguf-mistral": {"lora-gguf-mistral"},
    **dict.fromkeys(("chat", "doctor", "bench"), frozenset({"mistral", "gguf-mistral", "x-lora-mistral"})),
}


@pytest.mark.parametrize("command", KINDS)
def test_help_of_commands_shows_their_settings(command: str) -> None:
    text = " ".join(invoke(command, "--help").output.split())
    for spec in SPECS:
        if spec.option.cli and KINDS[command] & set(spec.option.kinds):
            assert spec.option.flags[0] in text
            assert f"env: {spec.env}]" in text


def test_commands_with_adapters_have_the_flags_of_their_base_and_their_own(served: list[Settings]) -> None:
    invoke("x-lora-mistral", "-m", "a/b", "-x", "c/d", "-o", "o.json", "--repeat-last-n", "7", "--no-xlora-kv-cache")
    invoke("--no-xlora-kv-cache", "x-lora-mistral", "--tgt-non-granular-index", "3", "--xlora-kv-cache")
    invoke("x-lora-gguf-mistral", "-m", "a/g", "-f", "g.gguf", "-x", "c/d", "--lora", "n=p")
    invoke("lora-mistral", "-m", "a/b", "--lora", "n=p", "--lora", "lab/other", "--lora-folder", ".")
    invoke("lora-mistral-gguf", "-f", "g.gguf", "--lora", "n=p")
    xlora, defaults, gguf, lora, lora_gguf = served
    assert (xlora.model_kind, xlora.model_id, xlora.xlora_model_id, str(xlora.order)) == (
        *("x-lora-mistral", "a/b", "c/d"),
        "o.json",
    )
    assert (xlora.repeat_last_n, xlora.xlora_kv_cache, xlora.tgt_non_granular_index) == (7, False, None)
    assert (defaults.xlora_kv_cache, defaults.tgt_non_granular_index) == (True, 3)
    assert (gguf.model_kind, gguf.quantized_filename, gguf.loras) == ("x-lora-gguf-mistral", "g.gguf", ("n=p",))
    assert (lora.lora_sources, lora.room_for_loras) == ({"n": "p", "other": "lab/other"}, 4)
    assert (lora_gguf.model_kind, lora_gguf.quantized_filename) == ("lora-gguf-mistral", "g.gguf")


def test_an_option_of_x_lora_before_another_command_is_refused() -> None:
    code, _, errors = run("--no-xlora-kv-cache", "demo")
    assert code == 2
    assert "only an X-LoRA model has this option" in errors


def test_options_before_and_after_the_command(served: list[Settings]) -> None:
    invoke(
        "--port", "8000", "-l", "log.jsonl", "-t", "mistral", "-m", "a/b", "--weight-file", "x", "--weight-file", "y"
    )
    invoke("demo", "--port", "8001", "--dtype", "float32")
    invoke("--port", "1", "demo", "--port", "2")
    first, second, third = served
    assert (first.port, str(first.log), first.truncate_sequence) == (8000, "log.jsonl", True)
    assert (first.model_kind, first.model_id, first.weight_files) == ("mistral", "a/b", ("x", "y"))
    assert (second.model_kind, second.port, second.dtype) == ("demo", 8001, "float32")
    assert third.port == 2


def test_gguf_has_the_flags_of_its_own_and_another_name(served: list[Settings]) -> None:
    invoke(
        "--port",
        "1",
        "gguf-mistral",
        "-m",
        "a/b",
        "-f",
        "c.gguf",
        "-t",
        "d/e",
        "--repeat-last-n",
        "9",
        "--quant",
        "int8",
    )
    invoke("-t", "mistral-gguf")
    named, default = served
    assert (named.model_kind, named.quantized_model_id, named.quantized_filename) == ("gguf-mistral", "a/b", "c.gguf")
    assert (named.tok_model_id, named.repeat_last_n, named.quant) == ("d/e", 9, "int8")
    assert (default.model_kind, default.truncate_sequence, default.tok_model_id) == ("gguf-mistral", True, None)


def test_environment_reaches_commands_and_flags_win(served: list[Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MISTRAL_JAX_TRUNCATE_SEQUENCE", "1")
    monkeypatch.setenv("MISTRAL_JAX_MODEL_ID", "env/model")
    invoke("mistral")
    invoke("--no-truncate-sequence", "mistral", "-m", "flag/model")
    invoke("demo")
    assert [s.truncate_sequence for s in served] == [True, False, True]
    assert [s.model_id for s in served] == ["env/model", "flag/model", None]


@pytest.mark.parametrize(
    ("arguments", "env", "message"),
    [
        (["--port", "x", "demo"], {}, "--port: 'x' is not valid; expected an integer from 0 to 65535"),
        (["demo"], {"MISTRAL_JAX_DTYPE": "f8"}, "MISTRAL_JAX_DTYPE: 'f8' is not valid"),
        (["--prot", "1", "demo"], {}, "--port"),
        (["serve"], {}, "serve"),
        (["demo", "--weight-file", "x"], {}, "--weight-file"),
        (["bench", "--rows", "0"], {}, "--rows"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(arguments: list[str], env: dict[str, str], message: str) -> None:
    code, output, errors = run(*arguments, env=env)
    assert (code, output) == (2, "")
    assert errors.startswith("Error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_debug_level_shows_the_traceback() -> None:
    _, _, errors = run("--log-level", "debug", "--port", "x", "demo")
    assert "Traceback" in errors
    assert errors.splitlines()[-1].startswith("Error: --port")


def test_help_lists_every_command_once() -> None:
    _, output, _ = run("--help")
    listed = {line.split()[0] for line in output.partition("Commands:")[2].splitlines() if line.strip()}
    assert {"gguf-mistral", "lora-gguf-mistral", "x-lora-gguf-mistral"} <= listed
    assert listed.isdisjoint({"mistral-gguf", "lora-mistral-gguf", "x-lora-mistral-gguf"})
    assert len({cli.commands[name].callback for name in listed & cli.commands.keys()}) == len(
        listed & cli.commands.keys()
    )


def test_no_command_prints_help() -> None:
    code, output, _ = run()
    assert code == 2
    assert "Commands:" in output


def test_version() -> None:
    code, output, _ = run("--version")
    assert code == 0
    assert output.startswith("mistral-jax, version ")


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    heavy = "{'jax', 'flax', 'litestar', 'uvicorn', 'numpy', 'msgspec', 'huggingface_hub'}"
    code = f"import sys, serving.commands.cli; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with cpu_seconds_at_most(2.0, children=True):  # it takes 0.2
        run("--help")
