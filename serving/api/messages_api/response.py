"""The JSON of responses of /v1/messages, of the events of its streams, and of its errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from msgspec import UNSET, Struct, UnsetType

from serving.api.schemas import Timings, XLoRAScalings
from serving.api.schemas.documented import documented as _doc

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
ErrorType = Literal[
    "invalid_request_error",
    "authentication_error",
    "permission_error",
    "not_found_error",
    "conflict_error",
    "request_too_large",
    "timeout_error",
    "rate_limit_error",
    "overloaded_error",
    "api_error",
]


class TextBlock(Struct, kw_only=True, tag_field="type", tag="text"):
    """A text."""

    text: str
    citations: None = None


class ThinkingBlock(Struct, kw_only=True, tag_field="type", tag="thinking"):
    """The reasoning of a model that marks it."""

    thinking: str
    signature: Annotated[str, _doc("empty: nothing is signed")] = ""


class ToolUseBlock(Struct, kw_only=True, tag_field="type", tag="tool_use"):
    """The use of a tool."""

    id: str
    name: str
    input: Annotated[dict[str, Any], _doc("the arguments; empty in a stream's start, and if they were cut off")]


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class ThinkingTokens(Struct, kw_only=True):
    thinking_tokens: int


class MessageUsage(Struct, kw_only=True):
    """Token counts."""

    input_tokens: int
    output_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int = 0
    output_tokens_details: ThinkingTokens
    service_tier: Literal["standard"] = "standard"


class Message(Struct, kw_only=True):
    """Response of POST /v1/messages."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: Annotated[StopReason | None, _doc("null in a stream's start")]
    stop_sequence: Annotated[str | None, _doc("the stop sequence that ended it")]
    usage: MessageUsage
    timings: Annotated[Timings | UnsetType, _doc("(an extension)")] = UNSET
    xlora: XLoRAScalings | UnsetType = UNSET


class TokenCount(Struct, kw_only=True):
    """Response of POST /v1/messages/count_tokens."""

    input_tokens: Annotated[int, _doc("of the whole prompt, with what the chat template adds")]


class MessageStart(Struct, kw_only=True, tag_field="type", tag="message_start"):
    """The message begins, still empty."""

    message: Message


class Ping(Struct, kw_only=True, tag_field="type", tag="ping"):
    """Nothing new."""


class ContentBlockStart(Struct, kw_only=True, tag_field="type", tag="content_block_start"):
    """A block begins, still empty."""

    index: int
    content_block: ContentBlock


class TextDelta(Struct, kw_only=True, tag_field="type", tag="text_delta"):
    text: str


class ThinkingDelta(Struct, kw_only=True, tag_field="type", tag="thinking_delta"):
    thinking: str


class InputJsonDelta(Struct, kw_only=True, tag_field="type", tag="input_json_delta"):
    partial_json: Annotated[str, _doc("more of the JSON text of a tool_use's input")]


BlockDelta = TextDelta | ThinkingDelta | InputJsonDelta


class ContentBlockDelta(Struct, kw_only=True, tag_field="type", tag="content_block_delta"):
    """More of a block."""

    index: int
    delta: BlockDelta


class ContentBlockStop(Struct, kw_only=True, tag_field="type", tag="content_block_stop"):
    """A block ends."""

    index: int


class MessageEnding(Struct, kw_only=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(Struct, kw_only=True, tag_field="type", tag="message_delta"):
    """How the message ended."""

    delta: MessageEnding
    usage: MessageUsage
    timings: Annotated[Timings | UnsetType, _doc("(an extension)")] = UNSET
    xlora: XLoRAScalings | UnsetType = UNSET


class MessageStop(Struct, kw_only=True, tag_field="type", tag="message_stop"):
    """The last event."""


class MessageErrorBody(Struct, kw_only=True):
    type: ErrorType
    message: str


class MessageError(Struct, kw_only=True, tag_field="type", tag="error"):
    """An error response, and the last event of a stream that failed."""

    error: MessageErrorBody


MessageEvent = (
    MessageStart
    | Ping
    | ContentBlockStart
    | ContentBlockDelta
    | ContentBlockStop
    | MessageDelta
    | MessageStop
    | MessageError
)
EVENTS: tuple[type[Struct], ...] = get_args(MessageEvent)
