"""The JSON of requests to /v1/messages."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct

from serving.api.schemas import SharedFields
from serving.api.schemas.documented import documented as _doc


class TextBlockParam(Struct, kw_only=True):
    """A block of a system prompt or of a tool's result; only text is implemented."""

    type: Annotated[str, _doc("`text`")]
    text: str | None = None


class ContentBlockParam(Struct, kw_only=True):
    """A block of a message's content."""

    type: Annotated[str, _doc("text, tool_use, tool_result or thinking")]
    text: Annotated[str | None, _doc("of a text")] = None
    thinking: Annotated[str | None, _doc("of the model's reasoning")] = None
    id: Annotated[str | None, _doc("of a tool_use")] = None
    name: Annotated[str | None, _doc("of the tool that is used")] = None
    input: Annotated[dict[str, Any] | None, _doc("of a tool_use: the arguments")] = None
    tool_use_id: Annotated[str | None, _doc("of a tool_result: the id of the tool_use")] = None
    content: Annotated[str | list[TextBlockParam] | None, _doc("of a tool_result")] = None


class MessageParam(Struct, kw_only=True):
    """A message."""

    role: Annotated[str, _doc("user, assistant or system")]
    content: str | list[ContentBlockParam]


class ToolParam(Struct, kw_only=True):
    """A tool; those that Anthropic runs are not implemented."""

    type: Annotated[str | None, _doc("`custom` or absent")] = None
    name: Annotated[str, _doc("1 to 64 letters, digits, underscores and dashes")]
    description: str | None = None
    input_schema: Annotated[dict[str, Any] | None, _doc("JSON schema of the arguments, an object's")] = None
    strict: Annotated[bool | None, _doc("refuse the request if the schema cannot be enforced to the letter")] = None


class ToolChoiceParam(Struct, kw_only=True):
    """Whether the model uses tools."""

    type: Annotated[str, _doc("auto, any, tool or none")]
    name: Annotated[str | None, _doc("of the tool to use, for the type `tool`")] = None
    disable_parallel_tool_use: Annotated[bool | None, _doc("true: at most one tool_use")] = None


class ThinkingParam(Struct, kw_only=True):
    """Whether the model reasons."""

    type: Annotated[str, _doc("enabled, disabled, or adaptive (as the chat template has it by itself)")]
    display: Annotated[str | None, _doc("omitted: thinking blocks without their text")] = None


class OutputFormatParam(Struct, kw_only=True):
    """The format of the text."""

    type: Annotated[str, _doc("`json_schema`")]
    schema: Any = None


class OutputConfigParam(Struct, kw_only=True):
    """What the output must be like."""

    format: OutputFormatParam | None = None
    effort: Annotated[str | None, _doc("low, medium, high, xhigh or max, as far as the model knows them")] = None


Messages = Annotated[list[MessageParam], _doc("the conversation; a last message of the assistant is continued")]
System = Annotated[str | list[TextBlockParam] | None, _doc("the system prompt")]
Tools = Annotated[list[ToolParam] | None, _doc("tools that the model may use")]
Thinking = Annotated[ThinkingParam | None, _doc("absent: as the chat template has it by itself")]


class MessagesRequest(SharedFields, kw_only=True):
    """Body of POST /v1/messages."""

    messages: Messages
    max_tokens: Annotated[int, _doc("most tokens of the response, reasoning included")]
    system: System = None
    stop_sequences: Annotated[list[str] | None, _doc("strings that end the response; they are not part of it")] = None
    tools: Tools = None
    tool_choice: ToolChoiceParam | None = None
    thinking: Thinking = None
    output_config: OutputConfigParam | None = None
    output_format: Annotated[OutputFormatParam | None, _doc("the older form of output_config.format")] = None


class CountTokensRequest(Struct, kw_only=True):
    """Body of POST /v1/messages/count_tokens."""

    model: Annotated[str | None, _doc("a served model or adapter; all have the same tokenizer and template")] = None
    messages: Messages
    system: System = None
    tools: Tools = None
    tool_choice: ToolChoiceParam | None = None
    thinking: Thinking = None
    output_config: OutputConfigParam | None = None
    output_format: Annotated[OutputFormatParam | None, _doc("the older form of output_config.format")] = None
