"""From the body of a response to that of a chat completion, and how errors name its fields."""

from __future__ import annotations

from collections.abc import Sequence

from serving.api.controllers.translated import shared_values
from serving.api.errors import InvalidRequestError
from serving.api.requests.bodies.renaming import Renames
from serving.api.responses_api.input_items import messages_of
from serving.api.responses_api.request import (
    InputTokensRequest,
    NamedTool,
    ResponseRequest,
    ResponseTool,
    ResponseToolChoice,
    TextFormat,
)
from serving.api.schemas import ChatCompletionRequest, JsonSchemaFormat, ResponseFormat
from serving.api.schemas.tools import (
    AllowedTools,
    FunctionDefinition,
    FunctionName,
    Tool,
    ToolChoice,
    ToolName,
)

RENAMES = Renames(
    {
        "messages": "input",
        "max_completion_tokens": "max_output_tokens",
        "tools[].function": "tools[]",
        "tool_choice.function.name": "tool_choice.name",
        "tool_choice.allowed_tools": "tool_choice",
        "response_format.json_schema": "text.format",
        "response_format": "text.format",
        "reasoning_effort": "reasoning.effort",
    }
)

LOGPROBS = "message.output_text.logprobs"
INCLUDABLE = (
    LOGPROBS,
    "reasoning.encrypted_content",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
)
"""OpenAI's values of `include`. Only the first changes a response here: there is nothing that the others would add."""

MAX_METADATA = 16
MAX_METADATA_KEY = 64
MAX_METADATA_VALUE = 512
"""OpenAI's limits on `metadata`: pairs, and characters of their keys and values."""


def chat_prompt(body: ResponseRequest | InputTokensRequest) -> ChatCompletionRequest:
    """The part of the chat completion that its prompt is made of.

    Raises:
      InvalidRequestError: an item of the input, or an option, is invalid.
    """
    if body.truncation not in (None, "auto", "disabled"):
        raise InvalidRequestError(
            f"truncation: {body.truncation[:50]!r} is not known; expected auto or disabled", param="truncation"
        )
    choice = body.tool_choice
    return ChatCompletionRequest(
        model=body.model,
        messages=messages_of(body.input, body.instructions),
        tools=None if body.tools is None else [_tool(tool, f"tools[{i}]") for i, tool in enumerate(body.tools)],
        tool_choice=_choice(choice) if isinstance(choice, ResponseToolChoice) else choice,
        parallel_tool_calls=body.parallel_tool_calls,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
    )


def chat_request(body: ResponseRequest) -> ChatCompletionRequest:
    """The chat completion that makes a response.

    Raises:
      InvalidRequestError: an item of the input, or an option, is invalid.
    """
    for index, value in enumerate(body.include or ()):
        if value not in INCLUDABLE:
            param = f"include[{index}]"
            raise InvalidRequestError(
                f"{param}: {value[:80]!r} is not known; expected {', '.join(INCLUDABLE)}", param=param
            )
    _check_metadata(body.metadata or {})
    chat = chat_prompt(body)
    for name, value in shared_values(body).items():
        setattr(chat, name, value)
    chat.max_completion_tokens = body.max_output_tokens
    chat.stop = body.stop
    chat.truncate_prompt_tokens = -1 if body.truncation == "auto" else None
    chat.logprobs = LOGPROBS in (body.include or ()) or bool(body.top_logprobs)
    chat.top_logprobs = body.top_logprobs
    chat.response_format = None if body.text is None or body.text.format is None else _format(body.text.format)
    return chat


def _tool(tool: ResponseTool, where: str) -> Tool:
    if tool.type != "function":
        return Tool(type=tool.type)  # refused by its name, with the tools of a chat completion
    if tool.name is None:
        raise InvalidRequestError(f"{where}.name: expected the name of a function", param=f"{where}.name")
    function = FunctionDefinition(
        name=tool.name, description=tool.description, parameters=tool.parameters, strict=tool.strict
    )
    return Tool(type="function", function=function)


def _choice(choice: ResponseToolChoice) -> ToolChoice:
    if choice.type == "function":
        if choice.name is None:
            raise InvalidRequestError("tool_choice.name: expected the name of a tool", param="tool_choice.name")
        return ToolChoice(type="function", function=FunctionName(name=choice.name))
    allowed = AllowedTools(mode=choice.mode or "", tools=_named(choice.tools or ()))
    return ToolChoice(type=choice.type, allowed_tools=allowed)


def _named(tools: Sequence[NamedTool]) -> list[ToolName]:
    return [
        ToolName(type=tool.type, function=None if tool.name is None else FunctionName(name=tool.name)) for tool in tools
    ]


def _format(wanted: TextFormat) -> ResponseFormat:
    if wanted.type != "json_schema":
        return ResponseFormat(type=wanted.type)
    return ResponseFormat(type="json_schema", json_schema=JsonSchemaFormat(schema=wanted.schema, strict=wanted.strict))


def _check_metadata(metadata: dict[str, str]) -> None:
    fits = all(len(key) <= MAX_METADATA_KEY and len(value) <= MAX_METADATA_VALUE for key, value in metadata.items())
    if len(metadata) > MAX_METADATA or not fits:
        raise InvalidRequestError(
            f"metadata: expected at most {MAX_METADATA} pairs, with keys of at most {MAX_METADATA_KEY} and values of "
            f"at most {MAX_METADATA_VALUE} characters",
            param="metadata",
        )
