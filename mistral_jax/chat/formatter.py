"""Conversations to prompts, whatever the source of the format."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mistral_jax.chat.encoding import PromptPieces, by_format, by_template
from mistral_jax.chat.errors import ConversationError
from mistral_jax.chat.messages import (
    check_variables,
    for_template,
    mark_end,
    plain,
    plain_messages,
    text_before,
)
from mistral_jax.chat.mistral_instruct import MistralInstruct
from mistral_jax.chat.output.detect import detect_reasoning, tool_format_of_template, tool_format_of_version
from mistral_jax.chat.output.formats import OutputFormat, ReasoningFormat, tool_format
from mistral_jax.chat.render_process import IsolatedTemplate
from mistral_jax.chat.tool_messages import normal_calls, plain_tools
from mistral_jax.chat.trusted import ControlMarks, ControlToken
from mistral_jax.tokenizer.base import Tokenizer
from mistral_jax.tokenizer.byte_table import ByteTableTokenizer
from mistral_jax.tokenizer.tekken import TekkenTokenizer

MAX_TEXT = 16_000_000
"""Most characters of a rendered conversation: several times the longest context of any model."""

TIME_LIMIT = 5.0
"""Most seconds that a template may run."""


class ChatFormatter:
    """Renders a conversation with a chat template and encodes it.

    Control tokens come from the template's own text only: `[INST]` in a message is text, wherever the template puts it.
    BOS is written exactly where the template writes it; none is added. Safe to use from several threads.
    """

    def __init__(
        self,
        template: str | Mapping[str, str],
        tokenizer: Tokenizer,
        *,
        max_text: int = MAX_TEXT,
        time_limit: float = TIME_LIMIT,
    ) -> None:
        """Compiles a Jinja template, or several by name: "tool_use" is taken where tools are given, else "default".

        Raises:
          ChatTemplateError: a template is broken.
          ConversationError: there are several and none of them is "default".
        """
        sources = {"default": template} if isinstance(template, str) else dict(template)
        self._sources = sources
        self._tokenizer = tokenizer
        self._marks = ControlMarks(tokenizer.control_tokens)
        self._templates = {
            name: IsolatedTemplate(source, self._marks, max_text=max_text, time_limit=time_limit)
            for name, source in sources.items()
        }
        self._names = frozenset[str]().union(*(template.names for template in self._templates.values()))
        self._instruct: MistralInstruct | None = None
        self._max_text = max_text
        source = sources.get("tool_use", sources.get("default"))
        version = tokenizer.instruct_version if isinstance(tokenizer, ByteTableTokenizer) else None
        name = None if source is None else tool_format_of_template(source, version)
        self._output = self._output_format(name, source)

    @property
    def output(self) -> OutputFormat:
        """What the model writes besides text: tool calls and reasoning, as far as the format is known."""
        return self._output

    @property
    def knows_tools(self) -> bool:
        """Whether the format can tell the model of tools."""
        if self._instruct is not None:
            return self._instruct.knows_tools
        return "tool_use" in self._templates or "tools" in self._names

    @property
    def variables(self) -> frozenset[str]:
        """Names that the template reads, those of variables that a caller may set among them."""
        return self._names if self._instruct is None else self._instruct.variables

    def with_tool_format(self, name: str | None) -> ChatFormatter:
        """The same formatter for a model that writes tool calls in another format.

        Args:
          name: One of `output.formats.TOOL_FORMATS`; None: the model calls no tools.
        """
        changed = copy.copy(self)
        tools = None if name is None else tool_format(name, self._tokenizer.control_tokens)
        changed._output = replace(self._output, tools=tools)
        return changed

    def _output_format(self, tools: str | None, template: str | None) -> OutputFormat:
        control_tokens = self._tokenizer.control_tokens
        return OutputFormat(
            tools=None if tools is None else tool_format(tools, control_tokens),
            reasoning=detect_reasoning(template, control_tokens),
        )

    @classmethod
    def for_tokenizer_version(cls, tokenizer: Tokenizer, version: str) -> ChatFormatter:
        """Mistral's own instruct format of a version, for models that ship no template.

        These formats have no generation prompt (the assistant's turn begins after `[/INST]`), and no variables but
        `reasoning_effort` in v15. A last assistant message with `"prefix": true` is left open, to be continued.

        Args:
          tokenizer: The model's tokenizer.
          version: "v1", "v2", "v3", "v7", "v11", "v13" or "v15", as `tokenizer.instruct_version` says.

        Raises:
          ChatTemplateError: the version is not implemented, or the tokenizer lacks a control token of its format.
        """
        formatter = cls({}, tokenizer)
        efforts = tokenizer.reasoning_efforts if isinstance(tokenizer, TekkenTokenizer) else None
        formatter._instruct = MistralInstruct(tokenizer.control_tokens, version, efforts=efforts)
        formatter._output = formatter._output_format(tool_format_of_version(version), None)
        return formatter

    @property
    def template(self) -> str | None:
        """The Jinja source of the default template; None if the format is not a template."""
        return self._sources.get("default")

    def encode(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of the whole prompt, control tokens and BOS included.

        Args:
          messages: OpenAI's messages; contents are strings or lists of text parts.
          add_generation_prompt: Whether the prompt ends where the assistant's turn begins.
          tools: OpenAI's tool descriptions.
          documents: Documents that the template writes into the prompt.
          continue_final_message: Whether the prompt ends with the last message's text, to be continued; instead of
            `add_generation_prompt`.
          **kwargs: Further variables for the template.

        Raises:
          ConversationError: the conversation is refused: the caller's fault.
          ChatTemplateError: the template fails or exceeds its limits.
        """
        prompt = self.encode_pieces(
            messages,
            add_generation_prompt=add_generation_prompt,
            tools=tools,
            documents=documents,
            continue_final_message=continue_final_message,
            **kwargs,
        )
        return [token for piece in prompt.pieces for token in piece]

    def encode_pieces(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> PromptPieces:
        """As `encode`, a piece at a time: the conversation is rendered before this returns, and encoded while the
        pieces are consumed.

        Raises:
          ConversationError: the conversation is refused: the caller's fault.
          ChatTemplateError: the template fails or exceeds its limits.
        """
        ending = add_generation_prompt, continue_final_message
        segments = self._segments(messages, ending, tools, documents, kwargs)
        pieces = (by_template if self._instruct is None else by_format)(segments, self._tokenizer)
        return replace(pieces, in_reasoning=_begins_reasoning(segments, self._output.reasoning))

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt as text, for display; it does not distinguish text from control tokens.

        Raises:
          ConversationError: the conversation is refused: the caller's fault.
          ChatTemplateError: the template fails or exceeds its limits.
        """
        ending = add_generation_prompt, continue_final_message
        segments = self._segments(messages, ending, tools, documents, kwargs)
        return "".join(s.text if isinstance(s, ControlToken) else s for s in segments)

    def _segments(
        self,
        messages: Sequence[Mapping[str, Any]],
        ending: tuple[bool, bool],
        tools: Sequence[Mapping[str, Any]] | None,
        documents: Sequence[Mapping[str, Any]] | None,
        kwargs: Mapping[str, Any],
    ) -> list[str | ControlToken]:
        """Args:
        ending: `add_generation_prompt` and `continue_final_message`.
        """
        generates, continues = ending
        try:
            variables = check_variables(kwargs)
            described = plain_tools(plain(list(tools), "tools")) if tools else None
            conversation = normal_calls(plain_messages(messages), self._output.tools)
            plain_documents = plain(list(documents), "documents") if documents else None
        except RecursionError as error:
            raise ConversationError("The conversation is nested too deeply.") from error
        if described and not self.knows_tools:
            raise ConversationError("This model's chat format knows no tools: it cannot tell the model of them.")
        if plain_documents and "documents" not in self.variables:
            raise ConversationError("This model's chat format has no place for documents.")
        if self._instruct is not None:
            if continues:
                _continue_last(conversation)
            return self._instruct.segments(conversation, described, self._max_text, variables)
        template = self._template(with_tools=described is not None)
        if "tool_calls" not in template.names and any(message.get("tool_calls") for message in conversation):
            raise ConversationError("This model's chat format knows no tool calls: it would leave them out.")
        mark = "".join(chr(0xF0000 + secrets.randbelow(0xFFFE)) for _ in range(6))
        if continues:
            mark_end(conversation, f"{mark} ")
        conversation = for_template(
            conversation, reads_parts=template.reads_parts, reads_strings=template.reads_strings
        )
        variables |= self._named_tokens()
        variables |= {"messages": conversation, "tools": described, "documents": plain_documents}
        variables["add_generation_prompt"] = generates and not continues
        rendered = template.render(variables)
        return self._marks.split(text_before(rendered, mark) if continues else rendered)

    def _template(self, *, with_tools: bool) -> IsolatedTemplate:
        if with_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        raise ConversationError(
            f"The model has chat templates for {', '.join(sorted(self._templates))} only, "
            "none for this kind of conversation."
        )

    def _named_tokens(self) -> dict[str, str]:
        """`bos_token` and so on, marked as the template's own; absent (undefined) where the vocabulary has none."""
        tokenizer = self._tokenizer
        ids = {
            "bos_token": tokenizer.bos_id,
            "eos_token": tokenizer.eos_id,
            "unk_token": tokenizer.unk_id,
            "pad_token": tokenizer.pad_id,
        }
        return {
            name: self._marks.mark(tokenizer.token_text(token_id))
            for name, token_id in ids.items()
            if token_id is not None
        }


def _continue_last(conversation: list[dict[str, Any]]) -> None:
    """Leaves the last message open, for Mistral's own formats."""
    last = conversation[-1]
    if last["role"] != "assistant" or not last.get("content"):
        raise ConversationError("Only the text of an assistant's message can be continued in this model's chat format.")
    last["prefix"] = True


def _begins_reasoning(segments: list[str | ControlToken], reasoning: ReasoningFormat | None) -> bool:
    """Whether a prompt ends with the start of reasoning, which the completion then continues."""
    if reasoning is None:
        return False
    start = reasoning.start
    for segment in reversed(segments):
        if isinstance(segment, ControlToken):
            return segment.id == start.id
        if segment.strip():
            return start.id is None and segment.rstrip().endswith(start.text)
    return False
