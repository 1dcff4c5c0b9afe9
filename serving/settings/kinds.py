"""The kinds of models that the server serves. A kind is two choices: where the weights come from, and which adapters
are used. Its command, its settings and their defaults follow from its row here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

ModelKind = Literal[
    "demo",
    "mistral",
    "gguf-mistral",
    "x-lora-mistral",
    "x-lora-gguf-mistral",
    "lora-mistral",
    "lora-gguf-mistral",
]
"""Names of the kinds, for type checkers; `KINDS` has a row for each."""
Weights = Literal["demo", "safetensors", "gguf"]
"""The bundled model, a safetensors model that the user names, or a GGUF file."""
Adapters = Literal["none", "lora", "x-lora"]
"""Adapters that the user names: none, LoRA adapters, or an X-LoRA classifier with its adapters (and optionally further
LoRA adapters). The demo has its own adapters."""

DEFAULT_MODEL_ID = "mistralai/Mistral-7B-Instruct-v0.1"
DEFAULT_GGUF = ("TheBloke/Mistral-7B-Instruct-v0.1-GGUF", "mistral-7b-instruct-v0.1.Q4_K_M.gguf")
"""Hub id and file that GGUF kinds serve by default."""
XLORA_GGUF = ("TheBloke/zephyr-7B-beta-GGUF", "zephyr-7b-beta.Q8_0.gguf")
"""The same for the base model of `serving.settings.adapters.DEFAULT_XLORA`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of model."""

    name: ModelKind
    """Also the name of its command."""
    weights: Weights
    adapters: Adapters
    summary: str
    """One-line help of its command."""
    other_name: str | None = None
    """Alias of the command, not listed in `--help`."""
    default_model_id: str | None = None
    """Served if the user names no model; None: there is no default, or the adapters name it."""
    default_gguf: tuple[str, str] = DEFAULT_GGUF
    default_texts: Mapping[str, str] = field(default_factory=dict[str, str])
    """Help texts of defaults, by setting, where they differ from those of other kinds."""


_ROWS = (
    Kind(
        name="demo",
        weights="demo",
        adapters="none",
        summary="Serve the small bundled model: nothing to download.",
    ),
    Kind(
        name="mistral",
        weights="safetensors",
        adapters="none",
        summary="Serve a model from the Hub, a folder or files.",
        default_model_id=DEFAULT_MODEL_ID,
    ),
    Kind(
        name="gguf-mistral",
        weights="gguf",
        adapters="none",
        summary="Serve a GGUF file: weights, tokenizer and chat template are all in it.",
        other_name="mistral-gguf",
    ),
    Kind(
        name="x-lora-mistral",
        weights="safetensors",
        adapters="x-lora",
        summary="Serve an X-LoRA mixture of adapters over a model.",
        default_texts={"model_id": f"the base model that the X-LoRA model names, or else {DEFAULT_MODEL_ID}"},
    ),
    Kind(
        name="x-lora-gguf-mistral",
        weights="gguf",
        adapters="x-lora",
        summary="Serve an X-LoRA mixture of adapters over a GGUF file.",
        other_name="x-lora-mistral-gguf",
        default_gguf=XLORA_GGUF,
        default_texts={"quantized_model_id": XLORA_GGUF[0], "quantized_filename": XLORA_GGUF[1]},
    ),
    Kind(
        name="lora-mistral",
        weights="safetensors",
        adapters="lora",
        summary="Serve a model with LoRA adapters, which requests name.",
        default_model_id=DEFAULT_MODEL_ID,
    ),
    Kind(
        name="lora-gguf-mistral",
        weights="gguf",
        adapters="lora",
        summary="Serve a GGUF file with LoRA adapters, which requests name.",
        other_name="lora-mistral-gguf",
    ),
)

KINDS: dict[ModelKind, Kind] = {kind.name: kind for kind in _ROWS}


def kind_of(weights: Weights, adapters: Adapters) -> Kind:
    """The kind with these weights and adapters."""
    return next(kind for kind in _ROWS if (kind.weights, kind.adapters) == (weights, adapters))


def _names(belongs: Callable[[Kind], bool]) -> tuple[ModelKind, ...]:
    return tuple(kind.name for kind in _ROWS if belongs(kind))


LOADED = _names(lambda kind: kind.weights == "safetensors")
"""Kinds that load a safetensors model that the user names."""
GGUF = _names(lambda kind: kind.weights == "gguf")
"""Kinds whose base model is a GGUF file."""
XLORA = _names(lambda kind: kind.adapters == "x-lora")
"""Kinds with an X-LoRA classifier that the user names."""
ADAPTED = _names(lambda kind: kind.adapters != "none")
"""Kinds with adapters that the user names."""
