"""The JSON of requests to /v1/responses."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Struct

from serving.api.schemas import SharedFields
from serving.api.schemas.documented import documented as _doc


class InputPart(Struct, kw_only=True):
    """A part of an item's content; only text is implemented."""

    type: Annotated[str, _doc("input_text, output_text, or in the content of a reasoning item reasoning_text")]
    text: str | None = None


class InputItem(Struct, kw_only=True):
    """A message, a call of a function, its output, or reasoning: an item of the input, or of an earlier response."""

    type: Annotated[str | None, _doc("message (also if absent), function_call, function_call_output or reasoning")] = (
        None
    )
    role: Annotated[str | None, _doc("of a message: user, assistant, system or developer")] = None
    content: Annotated[str | list[InputPart] | None, _doc("of a message, or of reasoning")] = None
    call_id: Annotated[str | None, _doc("of a call and of its output")] = None
    name: Annotated[str | None, _doc("of the function that is called")] = None
    arguments: Annotated[str | None, _doc("of a call: the JSON text of an object")] = None
    output: Annotated[str | list[InputPart] | None, _doc("of a call")] = None
    encrypted_content: Annotated[str | None, _doc("of reasoning; refused if there is no content beside it")] = None


class ResponseTool(Struct, kw_only=True):
    """A tool; only functions are implemented."""

    type: Annotated[str, _doc("`function`")]
    name: Annotated[str | None, _doc("1 to 64 letters, digits, underscores and dashes")] = None
    description: str | None = None
    parameters: Annotated[
        dict[str, Any] | None, _doc("JSON schema of its arguments, an object's; absent: it takes none")
    ] = None
    strict: Annotated[bool | None, _doc("refuse the request if the schema cannot be enforced to the letter")] = None


class NamedTool(Struct, kw_only=True, omit_defaults=True):
    """A tool by its name."""

    type: Annotated[str, _doc("`function`")]
    name: str | None = None


class ResponseToolChoice(Struct, kw_only=True, omit_defaults=True):
    """The function to call, or the functions that may be called."""

    type: Annotated[str, _doc("`function` or `allowed_tools`")]
    name: Annotated[str | None, _doc("of the function")] = None
    mode: Annotated[str | None, _doc("`auto` or `required`, for allowed_tools")] = None
    tools: list[NamedTool] | None = None


class TextFormat(Struct, kw_only=True, omit_defaults=True):
    """The format of the text."""

    type: Annotated[str, _doc("text, json_object or json_schema")]
    name: Annotated[str | None, _doc("of the schema; it changes nothing")] = None
    description: str | None = None
    schema: Annotated[Any, _doc("for json_schema: the JSON schema")] = None
    strict: Annotated[bool | None, _doc("texts match the schema with and without it")] = None


class TextOptions(Struct, kw_only=True):
    """What the text must be like."""

    format: TextFormat | None = None
    verbosity: Annotated[str | None, _doc("returned; the model has no such control")] = None


class ReasoningOptions(Struct, kw_only=True):
    """How much the model reasons."""

    effort: Annotated[
        str | None, _doc("none, minimal, low, medium, high, xhigh or max, as far as the model knows them")
    ] = None
    summary: Annotated[str | None, _doc("returned; there are no summaries, but the reasoning itself")] = None


Input = Annotated[str | list[InputItem], _doc("a text, which is a user's message, or a list of items")]
Instructions = Annotated[str | None, _doc("a system message before the input")]
Tools = Annotated[list[ResponseTool] | None, _doc("functions that the model may call")]
ToolChoice = Annotated[
    str | ResponseToolChoice | None,
    _doc("none, auto (the default: the model decides), required, a function to call, or those that are allowed"),
]
ParallelToolCalls = Annotated[bool | None, _doc("false: at most one call; absent: true")]
Truncation = Annotated[
    str | None, _doc("auto: cut a prompt that is too long from the left; disabled or absent: refuse it")
]


class ResponseRequest(SharedFields, kw_only=True):
    """Body of POST /v1/responses."""

    input: Input
    instructions: Instructions = None
    tools: Tools = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: ParallelToolCalls = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Truncation = None
    max_output_tokens: Annotated[
        int | None, _doc("most tokens of the response, reasoning included; absent: as many as fit in the context")
    ] = None
    stop: Annotated[str | list[str] | None, _doc("strings that end the response (an extension)")] = None
    top_logprobs: Annotated[int | None, _doc("return this many of the most likely tokens, 0 to 20")] = None
    include: Annotated[
        list[str] | None, _doc("message.output_text.logprobs: return the log-probability of each token of the text")
    ] = None
    metadata: Annotated[dict[str, str] | None, _doc("returned as it is")] = None
    user: Annotated[str | None, _doc("returned as it is")] = None
    safety_identifier: Annotated[str | None, _doc("returned as it is")] = None
    prompt_cache_key: Annotated[str | None, _doc("returned as it is")] = None
    prompt_cache_retention: Annotated[str | None, _doc("returned as it is")] = None
    max_tool_calls: Annotated[int | None, _doc("returned; there are no built-in tools to call")] = None


class InputTokensRequest(Struct, kw_only=True):
    """Body of POST /v1/responses/input_tokens."""

    model: Annotated[str | None, _doc("a served model or adapter; all have the same tokenizer and template")] = None
    input: Input
    instructions: Instructions = None
    tools: Tools = None
    tool_choice: ToolChoice = None
    parallel_tool_calls: ParallelToolCalls = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Truncation = None
