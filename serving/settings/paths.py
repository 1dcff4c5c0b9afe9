"""Checks that local paths in the settings exist, before JAX is imported and the port is opened.

Only names, configurations and indexes are read, which takes milliseconds. Hub repositories are checked later.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conversion.adapters.xlora.layout import find_layout
from conversion.adapters.xlora.ordering import read_ordering
from conversion.files.regular_file import exists, is_file, is_folder
from conversion.hub_id import HUB_ID
from conversion.weights.weight_files import has_configuration
from mistral_jax.hub.files import BUNDLED_ADAPTERS, DEMO, find_adapter, find_gguf, find_model
from serving.settings.settings import Settings, SettingsError


def check_paths(settings: Settings) -> None:
    """Check the model, tokenizer, adapters, ordering file, chat template, Hub token and output folders.

    Raises:
      SettingsError: something is missing or of the wrong kind; the message is one line that names the option.
    """
    _ = settings.token_source.token()
    (_check_gguf if settings.kind.weights == "gguf" else _check_model)(settings)
    if settings.tok_model_id is not None and _is_here(settings.tok_model_id):
        _expect(is_folder(Path(settings.tok_model_id).expanduser()), "--tok-model-id", settings.tok_model_id, "folder")
    if settings.kind.adapters == "x-lora" and settings.xlora_model_id is not None:
        _check_adapter("--xlora-model-id", settings.xlora_model_id, find_layout)
    for source in settings.lora_sources.values():
        _check_adapter("--lora", source, _lora_configuration)
    if settings.order is not None:
        with _errors_as("--order"):
            read_ordering(settings.order)
    if (template := settings.chat_template) is not None and "{{" not in template and "{%" not in template:
        what = "file, and it is not a Jinja template"
        _expect(is_file(Path(template).expanduser()), "--chat-template", template, what)
    if settings.log is not None:
        _expect(is_folder(settings.log.parent), "--log", str(settings.log), "folder")
    if (cache := settings.compilation_cache_dir) is not None:
        there = next(folder for folder in (cache, *cache.parents) if exists(folder))
        what = f"folder, and it cannot be made: {there} is a file"
        _expect(is_folder(there), "--compilation-cache", str(cache), what)


def check_training_files(training: Mapping[str, Any]) -> None:
    """Check the files of `--data` and `--validation`.

    Raises:
      SettingsError: one does not exist.
    """
    for option, paths in (("--data", training["data"]), ("--validation", [training["validation"]])):
        for path in filter(None, paths):
            if not is_file(Path(path).expanduser()):
                raise SettingsError(f"{option}: there is no file {path}; expected one of JSON lines")


def _check_model(settings: Settings) -> None:
    name = settings.model_id or DEMO
    if not _is_here(name):
        return
    with _errors_as("--model-id" if settings.model_id else "model"):
        files = find_model(name, weight_files=settings.weight_files)
        if files.gguf is None and not has_configuration(files.folder):
            # An incomplete config.json is reported later, by the code that reads it.
            if not is_file(files.folder / "config.json"):
                raise ValueError(f"{files.folder} has neither config.json nor params.json: is it a model folder?")
            return
        files.fetch_weights()  # for a local model: finds the files and reads nothing


def _check_gguf(settings: Settings) -> None:
    model_id, filename = settings.quantized_model_id, settings.quantized_filename
    if model_id is not None and not _is_here(model_id):
        if filename is not None and filename.startswith(("/", "./", "../", "~")):
            _expect(is_file(Path(filename).expanduser()), "--quantized-filename", filename, "file")
        return
    if model_id is None and (filename is None or "/" not in filename):
        return  # a file of the default repository, or a local one
    with _errors_as("--quantized-filename" if filename is not None else "--quantized-model-id"):
        find_gguf(model_id, filename, preferred=settings.default_gguf[1])


def _check_adapter(option: str, source: str, look_into: Callable[[Path], object]) -> None:
    if source not in BUNDLED_ADAPTERS and not _is_here(source):
        return
    with _errors_as(option):
        look_into(find_adapter(source))


def _lora_configuration(folder: Path) -> None:
    if not is_file(folder / "adapter_config.json"):
        raise ValueError(f"{folder} has no adapter_config.json: is it the folder of a LoRA adapter?")


def _is_here(name: str) -> bool:
    """Whether a name is a local path (which may not exist) and not a Hub id."""
    return exists(Path(name).expanduser()) or HUB_ID.fullmatch(name) is None


def _expect(condition: bool, option: str, value: str, what: str) -> None:
    if not condition:
        raise SettingsError(f"{option} {value[:300]}: there is no such {what}")


@contextmanager
def _errors_as(option: str) -> Generator[None]:
    """Turn errors into `SettingsError`s that name the option."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise SettingsError(f"{option}: {error}") from error
