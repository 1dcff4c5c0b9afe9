"""The JSON of responses of /v1/responses: items of the output, and the response around them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Struct, UnsetType, field

from serving.api.responses_api.request import (
    ReasoningOptions,
    ResponseTool,
    ResponseToolChoice,
    TextOptions,
)
from serving.api.schemas import ChatTokenLogprob, Timings, XLoRAScalings
from serving.api.schemas.documented import documented as _doc

Status = Literal["in_progress", "completed", "incomplete", "failed"]
ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(Struct, kw_only=True, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[Any] = field(default_factory=list[Any])
    logprobs: Annotated[list[ChatTokenLogprob], _doc("of each token, if the request asks for them")] = field(
        default_factory=list[ChatTokenLogprob]
    )


class ReasoningTextPart(Struct, kw_only=True, tag_field="type", tag="reasoning_text"):
    """The text of a reasoning item."""

    text: str


Part = OutputText | ReasoningTextPart


class OutputMessage(Struct, kw_only=True, tag_field="type", tag="message"):
    """A message of the model."""

    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class FunctionCallItem(Struct, kw_only=True, tag_field="type", tag="function_call"):
    """A call of a function."""

    id: str
    status: ItemStatus
    call_id: Annotated[str, _doc("what the output of the call refers to")]
    name: str
    arguments: Annotated[str, _doc("the JSON text of an object; perhaps not all of it if the item is incomplete")]


class ReasoningItem(Struct, kw_only=True, tag_field="type", tag="reasoning"):
    """The reasoning of a model that marks it."""

    id: str
    status: ItemStatus
    summary: Annotated[list[Any], _doc("empty: the reasoning itself is in `content`")] = field(
        default_factory=list[Any]
    )
    content: list[ReasoningTextPart]
    encrypted_content: None = None


OutputItem = OutputMessage | FunctionCallItem | ReasoningItem


class InputTokensDetails(Struct, kw_only=True):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(Struct, kw_only=True):
    reasoning_tokens: int


class ResponseUsage(Struct, kw_only=True):
    """Token counts."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(Struct, kw_only=True):
    """Why a response failed."""

    code: Literal["server_error", "invalid_prompt"]
    message: str


class IncompleteDetails(Struct, kw_only=True):
    reason: Literal["max_output_tokens"]


class ModelResponse(Struct, kw_only=True):
    """Response of POST /v1/responses, with the settings that it was made with."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Status
    completed_at: int | None = None
    background: Literal[False] = False
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    model: str
    output: list[OutputItem]
    usage: ResponseUsage | None = None
    store: Annotated[Literal[False], _doc("nothing is stored")] = False
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    reasoning: ReasoningOptions
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    temperature: float
    text: TextOptions
    tool_choice: str | ResponseToolChoice
    tools: list[ResponseTool]
    top_logprobs: int
    top_p: float
    truncation: Literal["auto", "disabled"]
    user: str | None
    timings: Annotated[Timings | UnsetType, _doc("of a response that has ended (an extension)")] = UNSET
    xlora: XLoRAScalings | UnsetType = UNSET


class InputTokens(Struct, kw_only=True):
    """Response of POST /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"] = "response.input_tokens"
    input_tokens: Annotated[int, _doc("of the whole prompt, with what the chat template adds")]
