"""Conversations to prompts: by a Jinja chat template, or by Mistral's own formats where a model ships none."""

from mistral_jax.chat.errors import ChatTemplateError, ConversationError
from mistral_jax.chat.formatter import ChatFormatter
from mistral_jax.chat.loading import load_chat_formatter

__all__ = ["ChatFormatter", "ChatTemplateError", "ConversationError", "load_chat_formatter"]
