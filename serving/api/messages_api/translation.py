"""From the body of Anthropic's API to that of a chat completion, and how errors name its fields."""

from __future__ import annotations

from serving.api.controllers.translated import shared_values
from serving.api.errors import InvalidRequestError
from serving.api.messages_api.conversation import messages_of
from serving.api.messages_api.request import (
    CountTokensRequest,
    MessagesRequest,
    OutputFormatParam,
    ToolChoiceParam,
    ToolParam,
)
from serving.api.requests.bodies.renaming import Renames
from serving.api.schemas import ChatCompletionRequest, ChatMessage, JsonSchemaFormat, ResponseFormat
from serving.api.schemas.tools import FunctionDefinition, FunctionName, Tool, ToolChoice
from serving.api.service.service import ChatEncoder

EFFORTS = ("low", "medium", "high", "xhigh", "max")
_ENABLED = "high"
"""The effort for which `thinking: {type: enabled}` stands: every model that has efforts knows it."""

type _Body = MessagesRequest | CountTokensRequest


def renames_of(body: _Body) -> Renames:
    """How errors name the fields of a body."""
    has_effort = body.output_config is not None and body.output_config.effort is not None
    format_field = "output_format" if body.output_format is not None else "output_config.format"
    return Renames(
        {
            "max_completion_tokens": "max_tokens",
            "stop": "stop_sequences",
            "tools[].function.parameters": "tools[].input_schema",
            "tools[].function": "tools[]",
            "tool_choice.function.name": "tool_choice.name",
            "response_format.json_schema": format_field,
            "response_format": format_field,
            "reasoning_effort": "output_config.effort" if has_effort else "thinking",
            "continue_final_message": "messages",
        }
    )


def chat_prompt(body: _Body, chat: ChatEncoder | None) -> ChatCompletionRequest:
    """The part of the chat completion that its prompt is made of.

    Args:
      chat: the model's chat format.

    Raises:
      InvalidRequestError: a message, a tool or an option is invalid.
    """
    messages = messages_of(body.messages, body.system)
    choice = body.tool_choice
    return ChatCompletionRequest(
        model=body.model,
        messages=messages,
        continue_final_message=_is_open(messages[-1]) or None,
        tools=None if body.tools is None else [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools)],
        tool_choice=None if choice is None else _choice(choice),
        parallel_tool_calls=False if choice is not None and choice.disable_parallel_tool_use else None,
        reasoning_effort=_effort(body, chat),
    )


def chat_request(body: MessagesRequest, chat: ChatEncoder | None) -> ChatCompletionRequest:
    """The chat completion that makes a message.

    Args:
      chat: the model's chat format.

    Raises:
      InvalidRequestError: a message, a tool or an option is invalid.
    """
    made = chat_prompt(body, chat)
    for name, value in shared_values(body).items():
        setattr(made, name, value)
    made.max_completion_tokens = body.max_tokens
    made.stop = None if body.stop_sequences is None else list(body.stop_sequences)
    config = body.output_config
    if config is not None and config.format is not None:
        if body.output_format is not None:
            raise InvalidRequestError("output_format: the request has output_config.format, too", param="output_format")
        made.response_format = _format(config.format, "output_config.format")
    elif body.output_format is not None:
        made.response_format = _format(body.output_format, "output_format")
    return made


def _is_open(last: ChatMessage) -> bool:
    """Whether the last message is a text of the assistant, which the response continues."""
    return last.role == "assistant" and bool(last.content) and not last.tool_calls


def _tool(tool: ToolParam, where: str) -> Tool:
    if tool.type not in (None, "custom"):
        raise InvalidRequestError(
            f"{where}.type: {tool.type[:50]!r} is a tool that Anthropic runs, and not supported by this server; "
            "expected `custom`, or no type",
            param=f"{where}.type",
        )
    if tool.input_schema is None:
        raise InvalidRequestError(f"{where}.input_schema: expected a JSON schema", param=f"{where}.input_schema")
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.input_schema, strict=tool.strict
    )
    return Tool(type="function", function=function)


def _choice(choice: ToolChoiceParam) -> str | ToolChoice:
    match choice.type:
        case "auto" | "none":
            return choice.type
        case "any":
            return "required"
        case "tool":
            if choice.name is None:
                raise InvalidRequestError("tool_choice.name: expected the name of a tool", param="tool_choice.name")
            return ToolChoice(type="function", function=FunctionName(name=choice.name))
        case other:
            raise InvalidRequestError(
                f"tool_choice.type: {other[:50]!r} is not known; expected auto, any, tool or none",
                param="tool_choice.type",
            )


def _effort(body: _Body, chat: ChatEncoder | None) -> str | None:
    """The `reasoning_effort` that says what the body says of thinking."""
    effort = None if body.output_config is None else body.output_config.effort
    if effort is not None and effort not in EFFORTS:
        raise InvalidRequestError(
            f"output_config.effort: {effort[:50]!r} is not known; expected one of {', '.join(EFFORTS)}",
            param="output_config.effort",
        )
    thinking = body.thinking
    if thinking is None:
        return effort
    match thinking.type:
        case "adaptive":
            return effort
        case "disabled":
            return "none"
        case "enabled":
            always = chat is not None and chat.output.reasoning is not None and not _has_setting(chat)
            return effort or (None if always else _ENABLED)
        case other:
            raise InvalidRequestError(
                f"thinking.type: {other[:50]!r} is not supported by this server; expected enabled, disabled or "
                "adaptive",
                param="thinking.type",
            )


def _has_setting(chat: ChatEncoder) -> bool:
    return not chat.variables.isdisjoint(("reasoning_effort", "enable_thinking"))


def _format(wanted: OutputFormatParam, where: str) -> ResponseFormat:
    if wanted.type != "json_schema":
        raise InvalidRequestError(
            f"{where}.type: {wanted.type[:50]!r} is not known; expected json_schema", param=f"{where}.type"
        )
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=wanted.schema))
