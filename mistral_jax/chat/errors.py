"""What can go wrong between a conversation and its prompt, and whose fault it is."""

from __future__ import annotations


class ChatTemplateError(ValueError):
    """A chat template is absent, broken, or exceeds its limits: the operator's to repair."""


class ConversationError(ChatTemplateError):
    """The template or the format refuses this conversation: the caller's to repair, HTTP 400."""
