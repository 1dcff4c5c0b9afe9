"""Finds the adapters that the settings name: their files and their names in the API."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conversion.adapters.xlora.config import read_xlora_config
from conversion.adapters.xlora.files import XLoRAFiles
from conversion.adapters.xlora.layout import find_layout
from conversion.files.regular_file import exists, is_folder
from conversion.hub_id import is_hub_id
from mistral_jax.adapters.load_adapters import AdapterFiles, open_adapters
from mistral_jax.hub.files import BUNDLED_ADAPTERS, DEMO_TOOLS, DEMO_XLORA, find_adapter
from mistral_jax.model.config import MistralConfig
from serving.api.service.served_models import ServedModels, adapted_models, plain_models
from serving.engine.adapter_registry import AdapterInfo
from serving.settings.adapters import DEFAULT_XLORA
from serving.settings.kinds import DEFAULT_MODEL_ID
from serving.settings.settings import Settings
from serving.settings.spec import local_name

_DEMO_PREFIX = "demo-"


def xlora_source(settings: Settings) -> str | None:
    """Hub id or folder of the X-LoRA model; None: there is none."""
    if settings.kind.adapters == "x-lora":
        return settings.xlora_model_id or DEFAULT_XLORA
    return DEMO_XLORA if _has_bundled(settings, DEMO_XLORA) else None


def lora_sources(settings: Settings) -> dict[str, str]:
    """Hub ids or folders of the adapters beside those of the X-LoRA model, by name."""
    if _has_bundled(settings, DEMO_TOOLS):
        return {DEMO_TOOLS.removeprefix(_DEMO_PREFIX): DEMO_TOOLS}
    return settings.lora_sources


def _has_bundled(settings: Settings, name: str) -> bool:
    return settings.kind.weights == "demo" and is_folder(BUNDLED_ADAPTERS[name])


def with_base_model(settings: Settings) -> Settings:
    """The settings; if they name no base model, with the one that the X-LoRA model names.

    Raises:
      ModelNotFoundError, AdapterError: the X-LoRA model does not exist, or its configuration is broken.
    """
    if (settings.kind.weights, settings.kind.adapters) != ("safetensors", "x-lora") or settings.model_id is not None:
        return settings
    source = xlora_source(settings)
    assert source is not None
    layout = find_layout(find_adapter(source, token=settings.token_source.token()))
    named = read_xlora_config(layout.config)[0].base_model_id
    usable = named is not None and (is_hub_id(named) or exists(Path(named).expanduser()))
    return replace(settings, model_id=named if usable else DEFAULT_MODEL_ID)


def open_adapter_files(settings: Settings, config: MistralConfig) -> AdapterFiles | None:
    """The adapters that the settings name, checked against the base model; None: this kind of model has no adapters.

    Raises:
      ModelNotFoundError, WeightFileError: see `mistral_jax.adapters.load_adapters.open_adapters`.
    """
    source = xlora_source(settings)
    if source is None and settings.kind.adapters == "none":
        return None
    return open_adapters(
        config,
        xlora=source,
        ordering=settings.order,
        loras=lora_sources(settings),
        base_model=settings.model_id if settings.kind.weights == "safetensors" else None,
        token=settings.token_source.token(),
    )


def served_models(settings: Settings, files: AdapterFiles | None, *, created: int) -> ServedModels:
    """The API names of the model and its adapters.

    Raises:
      NameTakenError: two have the same name.
    """
    if files is None:
        return plain_models(settings.served_id, created=created)
    experts = 0 if files.xlora is None else len(files.xlora.adapters)
    sources = lora_sources(settings)
    infos = [
        AdapterInfo(
            name=lora.name,
            key=lora.name,
            number=number,
            rank=lora.rank,
            parts=lora.parts,
            source=local_name(sources[lora.name]) if lora.name in sources else lora.folder.name,
            created=created,
            expert=number < experts,
        )
        for number, lora in enumerate(files.loras)
    ]
    demo = settings.kind.weights == "demo"
    mixture = None
    if files.xlora is not None:
        mixture = (settings.served_name or DEMO_XLORA) if demo else settings.served_id
    return adapted_models(
        base_id=settings.base_id if mixture is not None else settings.served_id,
        base_root=settings.base_id,
        adapters=infos,
        created=created,
        mixture_id=mixture,
        mixture_root=None if mixture is None else local_name(xlora_source(settings) or ""),
        freeze_after=settings.tgt_non_granular_index,
        adapter_prefix=_DEMO_PREFIX if demo else "",
        modules=("*",) if files.xlora is None else module_names(files.xlora),
        can_freeze=settings.xlora_kv_cache,
    )


def module_names(files: XLoRAFiles) -> Sequence[str]:
    """The module name of each column of scalings; "*" for all modules."""
    if files.num_columns == 1:
        return ("*",)
    names = {index: key.path for key, index in files.layer_index.items()}
    # An ordering may include modules that no adapter changes.
    return [names.get(index, "") for index in range(files.num_columns)]


def files_digest(files: AdapterFiles) -> str:
    """A digest that changes when the adapters' files do."""
    digest = hashlib.sha256()
    folders = [lora.folder for lora in files.loras] + ([] if files.xlora is None else [files.xlora.folder])
    for folder in folders:
        for path in sorted([*folder.glob("*.json"), *folder.glob("*.safetensors")]):
            stat = path.stat()
            digest.update(f"{path.name} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()
