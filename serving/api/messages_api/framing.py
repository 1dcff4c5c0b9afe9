"""A completion as a message of Anthropic's API: whole, and as the events of a stream."""

from __future__ import annotations

from typing import Any

import msgspec

from mistral_jax.chat.output.formats import OutputFormat
from serving.api.controllers.generation import Asked
from serving.api.errors import ApiError
from serving.api.messages_api.errors import message_error
from serving.api.messages_api.request import MessagesRequest
from serving.api.messages_api.response import (
    BlockDelta,
    ContentBlock,
    ContentBlockDelta,
    ContentBlockStart,
    ContentBlockStop,
    InputJsonDelta,
    Message,
    MessageDelta,
    MessageEnding,
    MessageEvent,
    MessageStart,
    MessageStop,
    MessageUsage,
    Ping,
    StopReason,
    TextBlock,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    ThinkingTokens,
    ToolUseBlock,
)
from serving.api.responses.framing import CallFacts
from serving.api.responses.parsed.blocks import Added, Block, Blocks, Closed, Opened
from serving.api.responses.wire import Wire
from serving.api.schemas import ChatCompletionRequest, Usage
from serving.api.service.asked import ToolUse
from serving.api.service.generation import ChoiceEvent


class MessageFraming:
    """Frames /v1/messages.

    Args:
      body: the request.
      asked, facts: of the chat completion that it was made to.
    """

    wire = Wire(named=True, end=b"", keep_alive=b'event: ping\ndata: {"type":"ping"}\n\n')

    def __init__(self, body: MessagesRequest, asked: Asked[ChatCompletionRequest], facts: CallFacts) -> None:
        self.call_id = facts.call_id
        self._model_id = facts.model_id
        self._blocks = Blocks(facts, asked.tools or ToolUse(output=OutputFormat()))
        self._hides_thinking = body.thinking is not None and body.thinking.display == "omitted"

    def opening(self) -> list[msgspec.Struct]:
        return [MessageStart(message=self.whole()), Ping()]

    def take(self, choice_event: ChoiceEvent) -> None:
        self._blocks.take(choice_event.event)

    def chunks(self, choice_event: ChoiceEvent) -> list[msgspec.Struct]:
        events: list[MessageEvent] = []
        for step in self._blocks.take(choice_event.event):
            match step:
                case Opened(block):
                    events.append(ContentBlockStart(index=block.index, content_block=self._block(block, begun=False)))
                case Added(block, text) if not (block.kind == "reasoning" and self._hides_thinking):
                    events.append(ContentBlockDelta(index=block.index, delta=_delta(block, text)))
                case Added():
                    pass
                case Closed(block):
                    events.append(ContentBlockStop(index=block.index))
        return list(events)

    def closing(self) -> list[msgspec.Struct]:
        ended = MessageDelta(
            delta=MessageEnding(stop_reason=self._stop_reason() or "end_turn", stop_sequence=self._blocks.stop_string),
            usage=self._usage(),
            timings=self._blocks.timings(),
            xlora=self._blocks.xlora(),
        )
        return [ended, MessageStop()]

    def failed(self, error: ApiError) -> list[msgspec.Struct]:
        return [message_error(error)]

    def usage(self) -> Usage:
        return self._blocks.usage()

    def whole(self) -> Message:
        return Message(
            id=self.call_id,
            model=self._model_id,
            content=[self._block(block) for block in self._blocks.all],
            stop_reason=self._stop_reason(),
            stop_sequence=self._blocks.stop_string,
            usage=self._usage(),
            timings=self._blocks.timings(),
            xlora=self._blocks.xlora() if self._blocks.ending is not None else msgspec.UNSET,
        )

    def _stop_reason(self) -> StopReason | None:
        match self._blocks.ending:
            case None:
                return None
            case "length":
                return "max_tokens"
            case "tool_calls":
                return "tool_use"
            case "stop":
                return "end_turn" if self._blocks.stop_string is None else "stop_sequence"

    def _block(self, block: Block, *, begun: bool = True) -> ContentBlock:
        """Args:
        begun: whether it has what there is of it so far.
        """
        text = block.text if begun else ""
        match block.kind:
            case "text":
                return TextBlock(text=text)
            case "reasoning":
                return ThinkingBlock(thinking="" if self._hides_thinking else text)
            case "call":
                return ToolUseBlock(id=block.call_id, name=block.name, input=_input(text))

    def _usage(self) -> MessageUsage:
        usage = self._blocks.usage()
        return MessageUsage(
            # As Anthropic counts: without those of the cache.
            input_tokens=usage.prompt_tokens - usage.prompt_tokens_details.cached_tokens,
            output_tokens=usage.completion_tokens,
            cache_read_input_tokens=usage.prompt_tokens_details.cached_tokens,
            output_tokens_details=ThinkingTokens(thinking_tokens=usage.completion_tokens_details.reasoning_tokens),
        )


def _delta(block: Block, text: str) -> BlockDelta:
    match block.kind:
        case "text":
            return TextDelta(text=text)
        case "reasoning":
            return ThinkingDelta(thinking=text)
        case "call":
            return InputJsonDelta(partial_json=text)


def _input(arguments: str) -> dict[str, Any]:
    """A call's arguments; empty if they were cut off, so that they are no JSON object."""
    try:
        return msgspec.json.decode(arguments, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return {}
