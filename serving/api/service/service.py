"""The parts of a served model that controllers use: engine, model card, tokenizer and chat format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mistral_jax.chat.encoding import PromptPieces
from mistral_jax.chat.output.formats import OutputFormat
from mistral_jax.grammar.compiler import CompiledGrammar
from mistral_jax.grammar.grammar import Grammar
from mistral_jax.tokenizer.base import Tokenizer
from serving.api.service.served_models import ServedModels
from serving.engine.adapter_registry import AdapterInfo
from serving.engine.messages import Engine, ModelCard


class ChatEncoder(Protocol):
    """Renders chat messages with the model's chat template and encodes them. Implemented by
    `mistral_jax.chat.ChatFormatter`."""

    @property
    def template(self) -> str | None:
        """The Jinja source of the template; None if the format is not a template."""
        ...

    @property
    def output(self) -> OutputFormat:
        """What the model writes besides text: tool calls and reasoning."""
        ...

    @property
    def knows_tools(self) -> bool:
        """Whether the format can tell the model of tools."""
        ...

    @property
    def variables(self) -> frozenset[str]:
        """Names that the template reads, those of variables that a caller may set among them."""
        ...

    def encode_pieces(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> PromptPieces:
        """Token ids of the whole prompt, control tokens and BOS included, in pieces. Rendering is done when this
        returns.

        Raises:
          ValueError: the template refuses the messages, or cannot be rendered.
        """
        ...

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[dict[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt as text, control tokens by name. Args: see `encode_pieces`.

        Raises:
          ValueError: see `encode_pieces`.
        """
        ...


class Grammars(Protocol):
    """Compiles grammars for the model's vocabulary, and keeps some of them. Implemented by `mistral_jax.grammar`."""

    def compile(self, grammar: Grammar) -> CompiledGrammar:
        """Compile a grammar, or return it compiled before; blocks. May be called from several threads.

        Raises:
          GrammarError: the grammar is not valid, asks for what cannot be held, or exceeds a limit; the message is for
            the client.
        """
        ...


class AdapterLoader(Protocol):
    """Loads and unloads adapters while the engine runs; does not manage names. Implemented by
    `serving.build.adapter_loader.FolderLoader`."""

    def load(self, name: str, path: str, replaced: AdapterInfo | None = None) -> AdapterInfo:
        """Read an adapter and load it on the device; blocks. Requests may use it once it is in the served models.

        Args:
          replaced: an adapter whose place may be taken if there is no other and no request uses it.

        Raises:
          ApiError: it cannot be loaded; the message is for the client.
        """
        ...

    def unload(self, adapter: AdapterInfo) -> int:
        """Refuse new requests for an adapter, and free its room when its last one has ended. Returns how many still
        use it."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Service:
    """A served model; its engine may still be loading it."""

    engine: Engine
    card: ModelCard
    models: ServedModels
    """The names of the model and its adapters."""
    tokenizer: Tokenizer
    grammars: Grammars
    chat: ChatEncoder | None
    """None: the model has no chat template, so /v1/chat/completions returns an error."""
    loader: AdapterLoader | None = None
    """None: adapters are fixed."""
