"""Conversations to prompts: by a Jinja chat template, or by Mistral's own formats where a model has none.

Names are imported when they are first used: the process that renders templates imports parts of this package, and has
to start fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mistral_jax.chat.errors import ChatTemplateError, ConversationError
    from mistral_jax.chat.formatter import ChatFormatter
    from mistral_jax.chat.from_files import load_chat_formatter

_HOMES = {
    "ChatFormatter": "formatter",
    "ChatTemplateError": "errors",
    "ConversationError": "errors",
    "load_chat_formatter": "from_files",
}

__all__ = ["ChatFormatter", "ChatTemplateError", "ConversationError", "load_chat_formatter"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
