"""What the controllers need of a loaded model: an engine, a card, a tokenizer and a chat format."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.tokenizer.base import Tokenizer
from serving.api.service.served_models import ServedModels
from serving.engine.adapter_registry import AdapterInfo
from serving.engine.messages import Engine, ModelCard


class ChatEncoder(Protocol):
    """Renders a conversation with the model's chat template and encodes it. `mistral_jax.chat.ChatFormatter` does."""

    def encode_pieces(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> PromptPieces:
        """Token ids of the whole prompt, control tokens and BOS included, a piece at a time. Rendered before this
        returns.

        Raises:
          ValueError: the template refuses the conversation, or cannot be rendered.
        """
        ...


class AdapterLoader(Protocol):
    """Loads and unloads adapters while the engine runs. `serving.build.adapter_loader.FolderLoader` does. It does
    not manage names."""

    def load(self, name: str, path: str) -> AdapterInfo:
        """Read an adapter and put it on the device; takes its time. Requests may use it once it is among the served
        models.

        Raises:
          ApiError: it cannot be; the message is for the client.
        """
        ...

    def unload(self, adapter: AdapterInfo) -> int:
        """Refuse requests for an adapter, and free its room when the last that runs has ended: how many still do."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A model that is served, or is being loaded by its engine."""

    engine: Engine
    card: ModelCard
    models: ServedModels
    """What requests may call it, and its adapters."""
    tokenizer: Tokenizer
    chat: ChatEncoder | None
    """None: the model has no chat template, so /v1/chat/completions is refused with an explanation."""
    loader: AdapterLoader | None = None
    """None: adapters are fixed."""
