"""The kinds of models that the server serves: one command each, and which settings belong to which."""

from __future__ import annotations

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

LOADED = ("mistral", "x-lora-mistral", "lora-mistral")
"""Kinds that load the files of a model that the user names."""
GGUF = ("gguf-mistral", "x-lora-gguf-mistral", "lora-gguf-mistral")
"""Kinds whose base model is a GGUF file."""
XLORA = ("x-lora-mistral", "x-lora-gguf-mistral")
"""Kinds with an X-LoRA classifier that the user names."""
ADAPTED = (*XLORA, "lora-mistral", "lora-gguf-mistral")
"""Kinds with adapters that the user names."""
