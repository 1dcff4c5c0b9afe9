"""Mistral-family language models in JAX: load, generate, inspect.

    import mistral_jax
    model = mistral_jax.load("demo")
    print(model.chat("Hello!"))

Names are imported at first use, so that code that needs no JAX does not load it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mistral_jax.shadowing import require_own

if TYPE_CHECKING:  # for type checkers and editors; at run time `__getattr__` finds these
    from mistral_jax.chat import ChatFormatter as ChatFormatter
    from mistral_jax.checkpoint.weights import save_pretrained as save_pretrained
    from mistral_jax.grammar.grammar import Grammar as Grammar
    from mistral_jax.model.config import MistralConfig as MistralConfig
    from mistral_jax.model.kv_cache import KVCache as KVCache
    from mistral_jax.model.mistral import Mistral as Mistral
    from mistral_jax.notebook.heat_maps import layers_by_adapters as layers_by_adapters
    from mistral_jax.notebook.heat_maps import tokens_by_adapters as tokens_by_adapters
    from mistral_jax.notebook.language_model import LanguageModel as LanguageModel
    from mistral_jax.notebook.load import load as load
    from mistral_jax.notebook.results import Generation as Generation
    from mistral_jax.notebook.results import Scalings as Scalings
    from mistral_jax.runtime.runner import Runner as Runner
    from mistral_jax.runtime.sampling.params import SamplingParams as SamplingParams
    from mistral_jax.runtime.warming.compilation_cache import enable_compilation_cache as enable_compilation_cache
    from mistral_jax.tokenizer import load_tokenizer as load_tokenizer

__version__ = "0.1.0"

_HOMES = {
    "ChatFormatter": "chat",
    "Generation": "notebook.results",
    "Grammar": "grammar.grammar",
    "KVCache": "model.kv_cache",
    "LanguageModel": "notebook.language_model",
    "Mistral": "model.mistral",
    "MistralConfig": "model.config",
    "Runner": "runtime.runner",
    "SamplingParams": "runtime.sampling.params",
    "Scalings": "notebook.results",
    "enable_compilation_cache": "runtime.warming.compilation_cache",
    "layers_by_adapters": "notebook.heat_maps",
    "load": "notebook.load",
    "load_tokenizer": "tokenizer",
    "save_pretrained": "checkpoint.weights",
    "tokens_by_adapters": "notebook.heat_maps",
}

__all__ = [
    "ChatFormatter",
    "Generation",
    "Grammar",
    "KVCache",
    "LanguageModel",
    "Mistral",
    "MistralConfig",
    "Runner",
    "SamplingParams",
    "Scalings",
    "__version__",
    "enable_compilation_cache",
    "layers_by_adapters",
    "load",
    "load_tokenizer",
    "save_pretrained",
    "tokens_by_adapters",
]

require_own("conversion")


if not TYPE_CHECKING:  # a type checker would take every unknown name for an Any

    def __getattr__(name: str) -> Any:
        if name in _HOMES:
            return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
