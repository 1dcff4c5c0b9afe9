"""README's blocks, as they are written: what can run here runs, against one server; what needs the Hub is parsed."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import serving.commands.cli
import serving.settings.paths
from mistral_jax.hub.files import DEMO_FOLDER
from serving.commands.cli import cli
from tests.integration.conftest import ROOT, ServerProcess

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PORT = "localhost:1234"


def commands_of(block: str) -> list[str]:
    """The commands of a shell block; one may have several lines, by a backslash or inside quotes."""
    commands: list[str] = []
    text = ""
    for line in block.splitlines():
        text += line
        try:
            words = shlex.split(text.removesuffix("\\"), comments=True)
        except ValueError:  # inside quotes
            text += "\n"
            continue
        if text.endswith("\\"):
            text += "\n"
            continue
        if words:
            commands.append(text)
        text = ""
    assert not text, f"a command without an end: {text}"
    return commands


COMMANDS = [command for language, block in BLOCKS if language == "bash" for command in commands_of(block)]


def words_of(command: str) -> list[str]:
    return shlex.split(command.replace("\\\n", " "), comments=True)


def those_of(program: str) -> list[str]:
    found = [command for command in COMMANDS if words_of(command)[0] == program]
    assert found
    return found


def test_every_block_is_tried_here() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "json", "python", ""}
    assert {words_of(command)[0] for command in COMMANDS} == {"make", "source", "mistral-jax", "curl", "pip", "jupyter"}


@pytest.mark.parametrize("command", those_of("make"))
def test_make_has_these_targets(command: str) -> None:
    done = subprocess.run([*words_of(command), "--dry-run"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_what_is_activated_is_where_make_installs() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    (environment,) = re.findall(r"^VENV\s*:= (.*)$", makefile, re.MULTILINE)
    assert [words_of(command) for command in those_of("source")] == [["source", f"{environment}/bin/activate"]]


def test_the_notebooks_extra_brings_what_its_commands_need() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["optional-dependencies"]
    for command in those_of("pip"):
        _, _, *arguments = words_of(command)
        assert (ROOT / arguments[arguments.index("--constraint") + 1]).is_file()
        (extra,) = re.findall(r"\.\[(\w+)\]", arguments[arguments.index("--editable") + 1])
        packages = {re.split(r"[>=<]", requirement)[0] for requirement in extras[extra]}
        assert {"jupyterlab", "ipywidgets", "matplotlib"} <= packages
    for command in those_of("jupyter"):
        *_, folder = words_of(command)
        assert any((ROOT / folder).glob("*.ipynb"))


@pytest.mark.parametrize("command", those_of("mistral-jax"))
def test_the_command_line_takes_what_is_written(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _, *arguments = words_of(command)
    called: list[str] = []

    def later(module: str, function: str) -> Any:
        return lambda *_given, **_named: called.append(function)

    monkeypatch.setattr(serving.commands.cli, "_later", later)
    result = CliRunner().invoke(cli, arguments, catch_exceptions=False, standalone_mode=False)
    assert called or result.output.startswith("mistral-jax, version ")


def test_conversion_as_it_is_written(tmp_path: Path) -> None:
    """`inspect` and both directions of `convert`, on the bundled model under README's names."""
    shutil.copytree(DEMO_FOLDER, tmp_path / "my-model")
    wanted = [command for command in those_of("mistral-jax") if words_of(command)[1] in ("inspect", "convert")]
    to_gguf = next(command for command in wanted if "my-model.gguf" in command)
    for command in sorted(wanted, key=lambda command: command is not to_gguf):
        program = shlex.join([sys.executable, "-m", "mistral_jax"])
        done = shell(command.replace("mistral-jax", program, 1), cwd=tmp_path)
        assert done.stdout
        if command is to_gguf:
            (tmp_path / "model.gguf").symlink_to("my-model.gguf")
    assert (tmp_path / "folder" / "config.json").is_file()


def test_curl_gives_what_is_printed_below_it(server: ServerProcess) -> None:
    answers = {command: json.loads(at(server, command)) for command in those_of("curl")}
    (printed,) = [json.loads(block) for language, block in BLOCKS if language == "json"]
    plain = next(answer for command, answer in answers.items() if "GGUF" in command)
    assert keys_of(plain) == keys_of(printed)
    assert plain["choices"] == printed["choices"]
    # Other tests have left the beginning of the prompt in the cache.
    for usage in (plain["usage"], printed["usage"]):
        del usage["prompt_tokens_details"]
    assert (plain["usage"], plain["model"]) == (printed["usage"], printed["model"])
    mixed = next(answer for command, answer in answers.items() if "xlora" in command)
    told = mixed["choices"][0]
    assert f'"content": "{told["message"]["content"]}"' in README
    called = next(answer for command, answer in answers.items() if "tools" in command)["choices"][0]
    (call,) = called["message"]["tool_calls"]
    assert f'"function": {json.dumps(call["function"])}' in README
    assert f'"finish_reason": "{called["finish_reason"]}"' in README
    names = json.dumps(told["xlora"]["adapters"])
    (numbers,) = re.findall(re.escape(f'"adapters": {names}, "scalings": ') + r"(\[.*?\])", README)
    assert told["xlora"]["scalings"] == pytest.approx(json.loads(numbers), abs=0.02)


def keys_of(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: keys_of(inner) for key, inner in value.items()}
    return [keys_of(inner) for inner in value] if isinstance(value, list) else None


@functools.cache
def python_blocks() -> list[str]:
    return [block for language, block in BLOCKS if language == "python"]


def test_the_client_prints_an_answer(server: ServerProcess, tmp_path: Path) -> None:
    (block,) = [block for block in python_blocks() if "openai" in block]
    done = python(block.replace(f"http://{PORT}", server.url), cwd=tmp_path)
    assert len(done.stdout) > 20


def test_the_library_does_what_is_written(tmp_path: Path) -> None:
    (block,) = [block for block in python_blocks() if "mistral_jax" in block]
    checks = (
        "\nassert len(answers) == 2\nassert logits.ndim == 2 and str(logits.dtype) == 'float32'\n"
        "assert state is not None\n"
    )
    assert python(block + checks, cwd=tmp_path).stdout.strip()


def python(script: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run([sys.executable, "-c", script], cwd=cwd)


def at(server: ServerProcess, command: str) -> str:
    assert PORT in command
    return shell(command.replace(f"http://{PORT}", server.url), cwd=ROOT).stdout


def shell(command: str, *, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run(["bash", "-c", command], cwd=cwd)


def run(command: list[str], *, cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MISTRAL_JAX_COMPILATION_CACHE": os.environ["JAX_COMPILATION_CACHE_DIR"],
    }
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr
    return done
