"""What the controllers need of a loaded model: an engine, a card, a tokenizer and a chat format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mistral_jax.tokenizer.base import Tokenizer
from serving.request import Engine, ModelCard


class ChatEncoder(Protocol):
    """Renders a conversation with the model's chat template and encodes it. `mistral_jax.chat.ChatFormatter` does."""

    def encode(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of the whole prompt, control tokens and BOS included.

        Raises:
          ValueError: the template refuses the conversation, or cannot be rendered.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A model that is served, or is being loaded by its engine."""

    engine: Engine
    card: ModelCard
    tokenizer: Tokenizer
    chat: ChatEncoder | None
    """None: the model has no chat template, so /v1/chat/completions is refused with an explanation."""
