"""The JSON of tools and their calls, in requests and responses of /v1/chat/completions: part of `serving.api.schemas`.

OpenAI's older `functions` and `function_call` are the same with other names.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType

from serving.api.schemas.documented import documented as _doc

# --- requests ---


class FunctionDefinition(Struct, kw_only=True):
    """A function that the model may call."""

    name: Annotated[str, _doc("1 to 64 letters, digits, underscores and dashes")]
    description: str | None = None
    parameters: Annotated[
        dict[str, Any] | None, _doc("JSON schema of its arguments, an object's; absent: it takes none")
    ] = None
    strict: Annotated[bool | None, _doc("refuse the request if the schema cannot be enforced to the letter")] = None


class Tool(Struct, kw_only=True):
    """A tool; only functions are implemented."""

    type: Annotated[str, _doc("`function`")]
    function: FunctionDefinition | None = None


class FunctionName(Struct, kw_only=True):
    name: str


class ToolName(Struct, kw_only=True):
    """A tool by its name."""

    type: Annotated[str, _doc("`function`")]
    function: FunctionName | None = None


class AllowedTools(Struct, kw_only=True):
    """Some of the tools."""

    mode: Annotated[str, _doc("`auto` or `required`")]
    tools: list[ToolName]


class ToolChoice(Struct, kw_only=True):
    """The tool to call, or the tools that may be called."""

    type: Annotated[str, _doc("`function` or `allowed_tools`")]
    function: FunctionName | None = None
    allowed_tools: AllowedTools | None = None


class MessageFunction(Struct, kw_only=True):
    """The name and the arguments of an earlier call."""

    name: str
    arguments: Annotated[str | dict[str, Any] | None, _doc("the JSON text of an object, or the object")] = None


class MessageToolCall(Struct, kw_only=True):
    """An earlier call, in an assistant's message."""

    function: MessageFunction
    id: str | None = None
    type: str | None = None


# --- responses ---


class FunctionCall(Struct, kw_only=True):
    name: str
    arguments: Annotated[str, _doc("the JSON text of an object; incomplete if `finish_reason` is `length`")]


class ToolCall(Struct, kw_only=True):
    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionCallDelta(Struct, kw_only=True):
    name: str | UnsetType = UNSET
    arguments: Annotated[str, _doc("more of the arguments")] = ""


class ToolCallDelta(Struct, kw_only=True):
    """The beginning of a call, with its id and name, or more of its arguments."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCallDelta
