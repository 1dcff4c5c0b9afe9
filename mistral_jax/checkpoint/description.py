"""A model without its weights: configuration, tokenizer, chat format, sampling defaults.

All of it comes from a model folder, or from the metadata of a GGUF file.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from conversion.files.json_fields import JSONFields, is_number, shown
from conversion.files.json_file import read_json_object
from conversion.gguf.config import hf_config
from conversion.gguf.container.file import GGUFFile
from conversion.gguf.source import GGUFSource
from conversion.tokenizer.chat_templates import read_chat_templates
from mistral_jax.chat import ChatFormatter, load_chat_formatter
from mistral_jax.chat.from_files import read_override
from mistral_jax.chat.gguf import chat_formatter_from_gguf
from mistral_jax.checkpoint.weights import stored_dtype
from mistral_jax.hub.files import ModelFiles
from mistral_jax.model.config import ConfigError, MistralConfig
from mistral_jax.runtime.sampling.params import SAMPLING_DEFAULT_FIELDS, SamplingParams, SamplingParamsError
from mistral_jax.tokenizer import Tokenizer, load_tokenizer
from mistral_jax.tokenizer.gguf import check_same_tokens, end_of_generation_ids, tokenizer_from_gguf

_GGUF_SAMPLING = {
    "temperature": "temp",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "penalty_repeat",
}
"""Our names of sampling defaults, and their names in GGUF metadata under `general.sampling.`."""


@dataclass(frozen=True, kw_only=True)
class ModelDescription:
    """A model's files, configuration, tokenizer, chat format and sampling defaults."""

    files: ModelFiles
    config: MistralConfig
    tokenizer: Tokenizer
    chat: ChatFormatter | None
    eos_ids: frozenset[int]
    defaults: dict[str, Any]
    """Sampling defaults from generation_config.json, or from the metadata of a GGUF file."""


def describe(files: ModelFiles, *, chat_template: str | None = None) -> ModelDescription:
    """Read configuration, tokenizer and chat template.

    Raises:
      ConfigError, TokenizerError, ChatTemplateError: a file is missing, broken or not implemented; or the tokenizer's
        vocabulary is larger than the model's.
      WeightFileError: a GGUF file is broken.
    """
    described = _describe_folder(files, chat_template) if files.gguf is None else _describe_gguf(files, chat_template)
    config, tokenizer = described.config, described.tokenizer
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.vocab_size} tokens and the model {config.vocab_size}: they do not belong "
            "together"
        )
    return described


def _describe_folder(files: ModelFiles, chat_template: str | None) -> ModelDescription:
    config = MistralConfig.from_folder(files.folder)
    folder = files.tokenizer_folder or files.folder
    tokenizer = load_tokenizer(folder)
    path = files.folder / "generation_config.json"
    generation = read_json_object(path, error=ConfigError, missing_ok=True)
    eos_ids = {*config.eos_token_ids, *_eos_ids(generation, path)}
    if tokenizer.eos_id is not None:
        eos_ids.add(tokenizer.eos_id)
    return ModelDescription(
        files=files,
        config=config,
        tokenizer=tokenizer,
        chat=load_chat_formatter(folder, tokenizer, chat_template),
        eos_ids=frozenset(eos_ids),
        defaults=_sampling_defaults(generation, path),
    )


def _describe_gguf(files: ModelFiles, chat_template: str | None) -> ModelDescription:
    """Read everything from the file, except a tokenizer or chat template that the user overrides."""
    assert files.gguf is not None
    with GGUFFile(files.gguf) as gguf:
        config = MistralConfig.from_hf(hf_config(gguf))
        metadata = gguf.metadata
        chat = None
        if files.tokenizer_folder is None:
            tokenizer = tokenizer_from_gguf(metadata)
        else:
            tokenizer = load_tokenizer(files.tokenizer_folder)
            check_same_tokens(metadata, tokenizer)
            chat = load_chat_formatter(files.tokenizer_folder, tokenizer, chat_template)
        if chat is None:
            chat = chat_formatter_from_gguf(metadata, tokenizer, chat_template)
        template = None
        if chat_template is not None:
            template = read_override(chat_template)
        elif files.tokenizer_folder is not None:
            template = read_chat_templates(files.tokenizer_folder)
        eos_ids = end_of_generation_ids(metadata, tokenizer, template)
        sampling = {name: metadata.get(f"general.sampling.{key}") for name, key in _GGUF_SAMPLING.items()}
        defaults = _sampling_defaults(sampling, files.gguf)
        config = replace(config, dtype=stored_dtype(GGUFSource(gguf)))
    return ModelDescription(
        files=files, config=config, tokenizer=tokenizer, chat=chat, eos_ids=eos_ids, defaults=defaults
    )


def _eos_ids(generation: dict[str, Any], path: Path) -> list[int]:
    return list(JSONFields(generation, error=ConfigError, source=str(path)).token_ids("eos_token_id"))


def _sampling_defaults(generation: dict[str, Any], path: Path) -> dict[str, Any]:
    """The file's sampling defaults; values out of range are refused now, not at the first request."""
    defaults = {key: value for key in SAMPLING_DEFAULT_FIELDS if (value := generation.get(key)) is not None}
    if defaults.get("top_k") == -1:  # means the same: no limit
        defaults["top_k"] = 0
    for key, value in defaults.items():
        expected = (int,) if key == "top_k" else (int, float)
        if type(value) not in expected or not is_number(value):
            raise ConfigError(
                f"{path}: {key} is {shown(value)}; expected {'an integer' if key == 'top_k' else 'a number'}"
            )
    try:
        SamplingParams(**defaults)
    except SamplingParamsError as error:
        raise ConfigError(f"{path}: {error}") from error
    return defaults
