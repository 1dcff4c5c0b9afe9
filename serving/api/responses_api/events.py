"""The JSON of the events of a stream of /v1/responses. An event's `type` is also its name in the stream."""

from __future__ import annotations

from typing import Annotated, get_args

from msgspec import Struct

from serving.api.responses_api.response import ModelResponse, OutputItem, Part
from serving.api.schemas import ChatTokenLogprob
from serving.api.schemas.documented import documented as _doc


class _Event(Struct, kw_only=True, tag_field="type"):
    sequence_number: Annotated[int, _doc("counts the events of the stream, from 0")] = 0


class ResponseCreated(_Event, tag="response.created"):
    """The response is in the queue."""

    response: ModelResponse


class ResponseInProgress(_Event, tag="response.in_progress"):
    """The response is being made."""

    response: ModelResponse


class ResponseCompleted(_Event, tag="response.completed"):
    """The last event of a response that is complete."""

    response: ModelResponse


class ResponseIncomplete(_Event, tag="response.incomplete"):
    """The last event of a response that was cut off."""

    response: ModelResponse


class ResponseFailed(_Event, tag="response.failed"):
    """The last event of a response that could not be finished."""

    response: ModelResponse


class StreamError(_Event, tag="error"):
    """Why the response failed."""

    message: str
    code: str | None
    param: str | None


class OutputItemAdded(_Event, tag="response.output_item.added"):
    """An item begins, still empty."""

    output_index: int
    item: OutputItem


class OutputItemDone(_Event, tag="response.output_item.done"):
    """An item ends."""

    output_index: int
    item: OutputItem


class _ItemEvent(_Event):
    item_id: str
    output_index: int


class _PartEvent(_ItemEvent):
    content_index: int


class ContentPartAdded(_PartEvent, tag="response.content_part.added"):
    """A part of an item's content begins, still empty."""

    part: Part


class ContentPartDone(_PartEvent, tag="response.content_part.done"):
    """A part of an item's content ends."""

    part: Part


class OutputTextDelta(_PartEvent, tag="response.output_text.delta"):
    """More text of a message."""

    delta: str
    logprobs: list[ChatTokenLogprob]


class OutputTextDone(_PartEvent, tag="response.output_text.done"):
    """The whole text of a message."""

    text: str
    logprobs: list[ChatTokenLogprob]


class ReasoningTextDelta(_PartEvent, tag="response.reasoning_text.delta"):
    """More reasoning."""

    delta: str


class ReasoningTextDone(_PartEvent, tag="response.reasoning_text.done"):
    """The whole reasoning of an item."""

    text: str


class FunctionCallArgumentsDelta(_ItemEvent, tag="response.function_call_arguments.delta"):
    """More of a call's arguments."""

    delta: str


class FunctionCallArgumentsDone(_ItemEvent, tag="response.function_call_arguments.done"):
    """The whole arguments of a call."""

    name: str
    arguments: str


ResponseEvent = (
    ResponseCreated
    | ResponseInProgress
    | ResponseCompleted
    | ResponseIncomplete
    | ResponseFailed
    | StreamError
    | OutputItemAdded
    | OutputItemDone
    | ContentPartAdded
    | ContentPartDone
    | OutputTextDelta
    | OutputTextDone
    | ReasoningTextDelta
    | ReasoningTextDone
    | FunctionCallArgumentsDelta
    | FunctionCallArgumentsDone
)
EVENTS: tuple[type[Struct], ...] = get_args(ResponseEvent)
