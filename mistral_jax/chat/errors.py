"""Errors between a conversation and its prompt, by who has to fix them."""

from __future__ import annotations


class ChatTemplateError(ValueError):
    """A chat template is absent, broken, or exceeds its limits: the operator has to fix it."""


class ConversationError(ChatTemplateError):
    """The template or the format refuses this conversation: the caller has to fix it, HTTP 400."""
