"""Mistral-family language models in JAX: load, generate, look inside.

    import mistral_jax
    model = mistral_jax.load("demo")
    print(model.chat("Hello!"))

Names are imported when they are first used, so that what needs no JAX does not load it.
"""

from importlib import import_module
from typing import Any

_HOMES = {
    "ChatFormatter": "chat",
    "Generation": "results",
    "KVCache": "kv_cache",
    "LanguageModel": "language_model",
    "Mistral": "mistral",
    "MistralConfig": "config",
    "Runner": "runner",
    "SamplingParams": "sampling_params",
    "Scalings": "results",
    "enable_compilation_cache": "compilation_cache",
    "layers_by_adapters": "heat_maps",
    "load": "loading",
    "load_tokenizer": "tokenizer",
    "save_pretrained": "checkpoint",
    "tokens_by_adapters": "heat_maps",
}

__all__ = sorted(_HOMES)  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
