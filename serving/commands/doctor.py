"""`mistral-jax doctor`: versions, devices, memory, caches, and whether the model in the settings would fit.

It does not stop at the first problem: each section has findings or a problem. Weights are not read.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Callable
from typing import Any

from conversion.files.regular_file import is_folder
from serving.settings.settings import Settings
from serving.settings.spec import SettingsError
from serving.version import version

Section = dict[str, Any]

_PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "litestar",
    "uvicorn",
    "msgspec",
    "numpy",
    "tokenizers",
    "sentencepiece",
    "huggingface_hub",
)
_UNWANTED = 1
"""Exit status if something is wrong."""


def run_doctor(settings: Settings, *, as_json: bool, offline: bool) -> int:
    """Print the findings; the exit status is 0 if the model would load and fit, else 1."""
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it when it is imported
    findings = examine(settings)
    print(json.dumps(findings, indent=2) if as_json else report(findings))
    return _UNWANTED if any("problem" in section for section in findings.values()) else 0


def examine(settings: Settings) -> dict[str, Section]:
    """All findings as plain data: sections by title; `problem` in a section says what is wrong."""
    parts: dict[str, Callable[[], Section]] = {
        "versions": versions,
        "machine": machine,
        "devices": lambda: devices(settings),
        "caches": lambda: caches(settings),
        "settings": settings.described,
        "model": lambda: model(settings),
    }
    return {title: _try(part) for title, part in parts.items()}


def _try(part: Callable[[], Section]) -> Section:
    try:
        return part()
    except Exception as error:
        known = isinstance(error, ValueError | OSError | RuntimeError)
        text = " ".join(str(error).split())
        return {"problem": text if known and text else f"{type(error).__name__}: {text}"}


def versions() -> Section:
    """Versions of Python and of the main dependencies."""
    found: Section = {"mistral-jax": version(), "python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found["problem"] = f"{package} is not installed"
    return found


def machine() -> Section:
    """Operating system, cores and memory."""
    import psutil

    memory = psutil.virtual_memory()
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory.total,
        "memory_available_bytes": memory.available,
    }


def devices(settings: Settings) -> Section:
    """The devices that JAX sees, and the one that the settings choose."""
    import jax

    from mistral_jax.quant.native import native
    from serving.build.gpus import choose_device

    chosen = choose_device(settings)
    found: Section = {"chosen": str(chosen)}
    if chosen.platform == "cpu":
        found["kernels_for_packed_weights"] = native.unavailable_because() or "compiled"
    for device in jax.devices():
        stats = device.memory_stats() or {}
        described: Section = {"kind": device.device_kind, "platform": device.platform}
        if "bytes_limit" in stats:
            described |= {"memory_bytes": int(stats["bytes_limit"]), "memory_used_bytes": int(stats["bytes_in_use"])}
        found[str(device)] = described
    return found


def caches(settings: Settings) -> Section:
    """Folders of compiled programs and downloaded models, and whether there is a Hub token (never the token)."""
    from huggingface_hub import constants, get_token

    folder = settings.compilation_cache_dir
    found: Section = {"compiled_programs": "none" if folder is None else str(folder)}
    if folder is not None and is_folder(folder):
        found["compiled_programs_count"] = sum(1 for _ in folder.iterdir())
    found["hub"] = str(constants.HF_HUB_CACHE)
    try:
        token = settings.token_source.token()
        present = token is not False and bool(token or get_token())
        found["hub_token"] = f"{settings.token_source}: {'present' if present else 'none'}"
    except SettingsError as error:
        found["problem"] = str(error)
    return found


def model(settings: Settings) -> Section:
    """The model that would be loaded, and whether it fits on the chosen device."""
    from conversion.gguf.container.file import GGUFFile
    from mistral_jax.checkpoint.description import describe
    from mistral_jax.checkpoint.weights import choose_dtype
    from serving.build.build_adapters import open_adapter_files, with_base_model
    from serving.build.build_service import model_files
    from serving.build.gpus import choose_device
    from serving.build.memory import memory_needs, plan_cache

    settings = with_base_model(settings)
    files = model_files(settings)
    description = describe(files, chat_template=settings.chat_template)
    config, placement = description.config, choose_device(settings)
    dtype = choose_dtype(settings.dtype, config.dtype, placement.platform)
    found: Section = {
        "name": files.name,
        "folder": str(files.folder),
        "architecture": config.architecture,
        "parameters": config.num_parameters,
        "stored_dtype": config.dtype or "unknown",
        "dtype": dtype.name,
        "quant": settings.quant,
        "activations": settings.activations,
        "made_for_tokens": config.max_position_embeddings,
        "cache_bytes_per_token": config.kv_bytes_per_token(dtype.itemsize),
        "chat_template": description.chat is not None,
    }
    try:
        if files.repo_id is None or files.gguf is not None:
            paths = files.fetch_weights()
            if files.gguf is not None:
                with GGUFFile(files.gguf) as gguf:
                    paths = list(gguf.paths)  # all parts of a split file
            found["files"] = {path.name: path.stat().st_size for path in paths}
        else:
            found["files"] = "on the Hub"
        adapters = open_adapter_files(settings, config)
        needs = memory_needs(settings, description, placement, adapters)
        found["weight_bytes"] = needs.weights
    except (ValueError, OSError) as error:
        return found | {"problem": str(error)}
    if adapters is not None:
        found["adapters"] = {lora.name: f"rank {lora.rank}" for lora in adapters.loras}
        found["x-lora"] = adapters.xlora is not None
        found["adapter_bytes"] = needs.adapters
    if needs.temporary:
        found["program_bytes"] = needs.temporary
    plan = plan_cache(settings, description, placement, adapters)
    found["max_seq_len"], found["slots"] = plan.length, settings.max_seqs
    found["cache_bytes"] = plan.nbytes
    needed, free = needs.weights + needs.adapters + needs.temporary + found["cache_bytes"], needs.free
    found |= {"needed_bytes": needed, "free_bytes": free, "fits": needed <= free}
    if needed > free:
        found["problem"] = (
            f"it does not fit: weights and cache need {_size(needed)}, {_size(free)} are free; take fewer slots "
            "(--max-seqs), shorter sequences (--max-seq-len) or a smaller type (--dtype)"
        )
    return found


def report(findings: dict[str, Section]) -> str:
    """The findings as text, with sizes in KiB, MiB, GiB."""
    lines: list[str] = []
    for title, section in findings.items():
        lines += ["", title.capitalize()] if lines else [title.capitalize()]
        width = max((len(name) for name in section), default=0)
        for name, value in section.items():
            label = name if title == "versions" else name.removesuffix("_bytes").replace("_", " ")
            label = "PROBLEM" if name == "problem" else label
            lines.append(f"  {label:<{width}}  {_shown(name, value)}")
    return "\n".join(lines)


def _shown(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(key, inner)}" for key, inner in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        sized = name.endswith(("_bytes", ".safetensors", ".gguf")) or name == "cache_bytes_per_token"
        return _size(value) if sized else f"{value:,}"
    return str(value)


def _size(count: int) -> str:
    size, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
