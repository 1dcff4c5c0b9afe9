"""`mistral-jax train-lora` and `train-xlora`: training from the command line."""

from __future__ import annotations

import logging
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from mistral_jax.checkpoint.description import describe
from mistral_jax.training.base import BaseModel
from mistral_jax.training.lora_training import train_lora
from mistral_jax.training.output_folder import prepare
from mistral_jax.training.settings import LoRATrainingSettings, TrainingSettings, XLoRATrainingSettings
from mistral_jax.training.trainer import Fitted
from mistral_jax.training.xlora_training import train_xlora
from serving.build.build_service import load_weights_of, model_files, use_compilation_cache
from serving.build.gpus import choose_device
from serving.settings.settings import Settings

logger = logging.getLogger("mistral_jax.training")

_INTERRUPTED = 130


def run_train_lora(settings: Settings, training: dict[str, Any]) -> int:
    """Train a LoRA and print the result."""
    chosen = _chosen(LoRATrainingSettings, training)
    base = _base(settings, training)
    trained = train_lora(base, settings=chosen, start=training["start"], **_places(training))
    return _print_result(trained.run, training["output"])


def run_train_xlora(settings: Settings, training: dict[str, Any]) -> int:
    """Train the classifier of a mixture and print the result."""
    adapters: dict[str, str] = {}
    for given in training["adapters"]:
        name, equals, path = given.partition("=")
        if not equals or not name or not path:
            raise ValueError(f"--adapter {given}: expected NAME=PATH, such as poet=./poet")
        if name in adapters:
            raise ValueError(f"--adapter: {name} is given twice; give each adapter a name of its own")
        adapters[name] = path
    if len(adapters) < 2:
        raise ValueError(f"a mixture needs at least two adapters, and {len(adapters)} are given (--adapter NAME=PATH)")
    chosen = _chosen(XLoRATrainingSettings, training)
    base = _base(settings, training)
    trained = train_xlora(base, adapters, settings=chosen, **_places(training))
    return _print_result(trained.run, training["output"])


def _chosen[T: TrainingSettings](kind: type[T], training: dict[str, Any]) -> T:
    return kind(**{item.name: training[item.name] for item in fields(kind)})


def _places(training: dict[str, Any]) -> dict[str, Any]:
    return {name: training[name] for name in ("data", "output", "validation", "resume", "overwrite")}


def _base(settings: Settings, training: dict[str, Any]) -> BaseModel:
    """Load the model, after all checks that do not need it."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("mistral_jax").setLevel(logging.INFO)
    if training["resume"] and training["overwrite"]:
        raise ValueError("--resume continues from what is in the folder, --overwrite replaces it; give one of them")
    use_compilation_cache(settings)
    prepare(training["output"], resume=training["resume"], overwrite=training["overwrite"])
    description = describe(model_files(settings), chat_template=settings.chat_template)
    logger.info("loading %s", description.files.name)
    # Gradients are those of activations that are not rounded.
    module = load_weights_of(replace(settings, activations="float"), description, choose_device(settings))
    return BaseModel.described(description, module)


def _print_result(run: Fitted, output: Path) -> int:
    if not run.finished:
        print(f"Stopped after {run.steps} steps; the same command with --resume goes on.", file=sys.stderr)
        return _INTERRUPTED
    print(f"{output}: loss {run.losses[0]:.4f} -> {run.losses[-20:].mean():.4f} in {run.steps} steps", end="")
    if len(run.validation_losses):
        print(f", validation loss {run.validation_losses[0]:.4f} -> {run.validation_losses[-1]:.4f}", end="")
    print()
    return 0
