"""What the settings name and is not there is told in one line, before anything slow is imported and before the port is
open."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from serving.settings.paths import check_paths, check_training_files
from serving.settings.settings import Settings, SettingsError
from tests.conversion.tiny_models import GOLDENS, write_folder

NARROW = GOLDENS / "narrow.Q4_0.gguf"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a model, a GGUF file, an adapter and some things that are none."""
    monkeypatch.chdir(tmp_path)
    write_folder(tmp_path / "model")
    shutil.copy(NARROW, tmp_path / "model.gguf")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("a text")
    (tmp_path / "no ordering.json").write_text("[]")
    shutil.copytree(tmp_path / "model", tmp_path / "no weights")
    for weights in (tmp_path / "no weights").glob("*.safetensors*"):
        weights.unlink()
    return tmp_path


def check(given: dict[str, Any], kind: Any = None) -> None:
    check_paths(Settings.resolve(given, kind=kind, env={}))


@pytest.mark.parametrize(
    ("given", "kind", "message"),
    [
        ({"model_id": "./nowhere"}, "mistral", "--model-id: './nowhere' is neither a folder or file here nor a Hub id"),
        ({"model_id": "/nowhere/at/all"}, "mistral", "--model-id: '/nowhere/at/all' is neither"),
        ({"model_id": "./empty"}, "mistral", "--model-id: empty has neither config.json nor params.json"),
        ({"model_id": "./no weights"}, "mistral", "--model-id: no weights"),
        ({"model_id": "./file.txt"}, "mistral", "--model-id: ./file.txt is a .txt file"),
        ({"model_id": "./model", "weight_files": ("other.safetensors",)}, "mistral", "'other.safetensors' is neither"),
        (
            {"model_id": "./model", "tok_model_id": "./nowhere"},
            "mistral",
            "--tok-model-id ./nowhere: there is no such folder",
        ),
        (
            {"quantized_filename": "./nowhere.gguf"},
            "gguf-mistral",
            "--quantized-filename: there is no file ./nowhere.gguf",
        ),
        ({"quantized_model_id": "./empty"}, "gguf-mistral", "--quantized-model-id: ./empty has no GGUF file"),
        (
            {"quantized_model_id": "a/b", "quantized_filename": "./nowhere.gguf"},
            "gguf-mistral",
            "--quantized-filename ./nowhere.gguf: there is no such file",
        ),
        ({"loras": ("poet=./nowhere",)}, "lora-mistral", "--lora: './nowhere' is neither a folder here nor a Hub id"),
        ({"loras": ("poet=./empty",)}, "lora-mistral", "--lora: empty has no adapter_config.json"),
        ({"xlora_model_id": "./nowhere"}, "x-lora-mistral", "--xlora-model-id: './nowhere' is neither"),
        ({"xlora_model_id": "./empty"}, "x-lora-mistral", "--xlora-model-id: "),
        ({"order": "nowhere.json"}, "x-lora-mistral", "--order: "),
        ({"order": "no ordering.json"}, "x-lora-mistral", "--order: "),
        ({"chat_template": "nowhere.jinja"}, "demo", "--chat-template nowhere.jinja: there is no such file"),
        ({"log": "nowhere/output.log"}, "demo", "--log nowhere/output.log: there is no such folder"),
        ({"compilation_cache": "file.txt/xla"}, "demo", "--compilation-cache file.txt/xla: there is no such folder"),
        ({"token_source": "path:nowhere"}, "demo", "--token-source path:nowhere: cannot read the file"),
    ],
)
def test_what_is_not_there_is_told_by_its_option(here: Path, given: dict[str, Any], kind: Any, message: str) -> None:
    with pytest.raises(SettingsError) as error:
        check(given, kind)
    assert str(error.value).startswith(message) or message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, "demo"),
        ({"model_id": "./model", "tok_model_id": "model"}, "mistral"),
        ({"model_id": "./model.gguf"}, "mistral"),
        ({"model_id": "somebody/elses"}, "mistral"),
        ({"quantized_filename": "./model.gguf"}, "gguf-mistral"),
        ({"quantized_model_id": "."}, "gguf-mistral"),
        ({"quantized_model_id": "a/b", "quantized_filename": "c.gguf"}, "gguf-mistral"),
        ({}, "gguf-mistral"),
        ({"loras": ("poet=./adapter", "cook=lab/cook")}, "lora-mistral"),
        ({"xlora_model_id": "demo-xlora", "model_id": "demo"}, "x-lora-mistral"),
        ({}, "x-lora-mistral"),
        ({"chat_template": "{{ messages }}"}, "demo"),
        ({"chat_template": "file.txt", "log": "output.log", "compilation_cache": "new/xla"}, "demo"),
    ],
)
def test_what_is_there_or_on_the_hub_passes(here: Path, given: dict[str, Any], kind: Any) -> None:
    check(given, kind)


@pytest.mark.parametrize(
    "arguments", [["mistral", "-m", "./nowhere"], ["chat", "-m", "./nowhere"], ["train-lora", "-m", "./nowhere"]]
)
def test_a_command_ends_with_2_and_one_line_and_has_not_imported_jax(tmp_path: Path, arguments: list[str]) -> None:
    if arguments[0] == "train-lora":
        arguments += ["--data", "x.jsonl", "--output", "out"]
    script = (
        "import sys\n"
        "from serving.commands.cli import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    print('jax' in sys.modules, 'uvicorn' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--compilation-cache", "none", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout.strip()) == (2, "False False"), done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: --model-id: './nowhere' is neither a folder or file here nor a Hub id")


@pytest.mark.parametrize("option", ["data", "validation"])
def test_files_to_train_on_are_looked_for(here: Path, option: str) -> None:
    training = {"data": ("file.txt",), "validation": None}
    check_training_files(training)
    check_training_files({**training, "validation": "file.txt"})
    wrong = ("file.txt", "nowhere.jsonl") if option == "data" else "nowhere.jsonl"
    with pytest.raises(SettingsError, match=f"--{option}: there is no file nowhere.jsonl"):
        check_training_files({**training, option: wrong})
