"""`mistral-jax train-lora` and `train-xlora`: what reaches the trainings, what comes back, and one-line errors."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import serving.commands.train
from mistral_jax.training.settings import LoRATrainingSettings, XLoRATrainingSettings
from mistral_jax.training.trainer import Fitted
from serving.commands.cli import cli


class _Trained:
    def __init__(self, finished: bool) -> None:
        self.run = Fitted(
            params=None,
            steps=40,
            finished=finished,
            losses=np.linspace(3, 1, 40, dtype=np.float32),
            validation_steps=np.array([0, 40], np.int32),
            validation_losses=np.array([3.5, 1.5], np.float32),
        )


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps({"text": "one two"}) + "\n")
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The arguments of the trainings, which are not run. Append False first to have one that was interrupted."""
    seen: list[Any] = []

    def train(*arguments: Any, **others: Any) -> _Trained:
        finished = False not in seen
        seen.append((arguments, others))
        return _Trained(finished)

    monkeypatch.setattr(serving.commands.train, "train_lora", train)
    monkeypatch.setattr(serving.commands.train, "train_xlora", train)
    return seen


def invoke(*arguments: str | Path) -> Any:
    return CliRunner().invoke(cli, [str(argument) for argument in ("--compilation-cache", "none", *arguments)])


@pytest.mark.parametrize(
    ("command", "kind"), [("train-lora", LoRATrainingSettings), ("train-xlora", XLoRATrainingSettings)]
)
def test_every_setting_has_an_option(command: str, kind: type) -> None:
    text = invoke(command, "--help").output
    for item in fields(kind):
        assert "--" + item.name.removeprefix("use_").replace("_", "-") in text


def test_a_lora_is_trained_as_the_options_say(
    data: Path, tmp_path: Path, trained: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    result = invoke(
        *("train-lora", "--data", data, "--data", data, "--output", tmp_path / "lora", "--validation", data),
        *("--steps", "40", "--targets", "q_proj, v_proj", "--rslora", "--remat", "--too-long", "skip", "--alpha", "8"),
        *("--start", "poet"),
    )
    assert result.exit_code == 0, result.output
    ((base,), given) = trained[0]
    assert base.name == "demo"
    assert "loading demo" in [record.getMessage() for record in caplog.records]
    assert given.pop("settings") == LoRATrainingSettings(
        steps=40, targets=("q_proj", "v_proj"), use_rslora=True, remat=True, too_long="skip", alpha=8.0
    )
    assert given == {
        "data": (data, data),
        "validation": data,
        "output": tmp_path / "lora",
        "start": "poet",
        "resume": False,
        "overwrite": False,
    }
    assert result.stdout.strip() == (
        f"{tmp_path / 'lora'}: loss 3.0000 -> 1.4872 in 40 steps, validation loss 3.5000 -> 1.5000"
    )


def test_a_classifier_is_trained_as_the_options_say(data: Path, tmp_path: Path, trained: list[Any]) -> None:
    result = invoke(
        *("train-xlora", "--data", data, "--output", tmp_path / "x", "--adapter", "a=one", "--adapter", "b=two=2"),
        *("--no-layerwise", "--depth", "2", "--top-k", "1"),
    )
    assert result.exit_code == 0, result.output
    ((_, adapters), given) = trained[0]
    assert adapters == {"a": "one", "b": "two=2"}
    assert given["settings"] == XLoRATrainingSettings(layerwise=False, depth=2, top_k=1)


def test_an_interrupted_run_says_how_to_go_on(data: Path, tmp_path: Path, trained: list[Any]) -> None:
    trained.append(False)
    result = CliRunner().invoke(
        cli,
        ["--compilation-cache", "none", "train-lora", "--data", str(data), "--output", str(tmp_path / "lora")],
        standalone_mode=False,
    )
    assert result.return_value == 130
    assert "Stopped after 40 steps; the same command with --resume goes on." in result.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("train-lora", "--data", "nowhere.jsonl"), "there is no file nowhere.jsonl; expected one of JSON lines"),
        (("train-lora", "--data", "DATA", "--rank", "0"), "rank is 0; expected at least 1"),
        (("train-lora", "--data", "DATA", "--targets", "head"), "targets is 'head'"),
        (("train-lora", "--data", "DATA", "--resume", "--overwrite"), "give one of them"),
        (("train-xlora", "--data", "DATA", "--adapter", "a"), "--adapter a: expected NAME=PATH"),
        (("train-xlora", "--data", "DATA", "--adapter", "a=x"), "at least two adapters, and 1 are given"),
        (("train-xlora", "--data", "DATA", "--adapter", "a=x", "--adapter", "a=y"), "a is given twice"),
    ],
)
def test_wrong_input_is_refused(
    data: Path, tmp_path: Path, trained: list[Any], arguments: tuple[str, ...], expected: str
) -> None:
    given = [str(data) if argument == "DATA" else argument for argument in arguments]
    result = invoke(*given, "--output", tmp_path / "out")
    assert result.exit_code == 1
    assert expected in str(result.exception)
    assert not trained
