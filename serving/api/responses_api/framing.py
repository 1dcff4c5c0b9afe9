"""A completion as a response of /v1/responses: whole, and as the events of a stream."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from mistral_jax.chat.output.formats import OutputFormat
from serving.api.controllers.generation import Asked
from serving.api.errors import ApiError
from serving.api.responses.framing import CallFacts, chat_logprobs, new_id
from serving.api.responses.parsed.blocks import Added, Block, Blocks, Closed, Opened, Step
from serving.api.responses.wire import NAMED_EVENTS
from serving.api.responses_api.events import (
    ContentPartAdded,
    ContentPartDone,
    FunctionCallArgumentsDelta,
    FunctionCallArgumentsDone,
    OutputItemAdded,
    OutputItemDone,
    OutputTextDelta,
    OutputTextDone,
    ReasoningTextDelta,
    ReasoningTextDone,
    ResponseCompleted,
    ResponseCreated,
    ResponseEvent,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    StreamError,
)
from serving.api.responses_api.request import ReasoningOptions, ResponseRequest, TextFormat, TextOptions
from serving.api.responses_api.response import (
    FunctionCallItem,
    IncompleteDetails,
    InputTokensDetails,
    ItemStatus,
    ModelResponse,
    OutputItem,
    OutputMessage,
    OutputText,
    OutputTokensDetails,
    Part,
    ReasoningItem,
    ReasoningTextPart,
    ResponseFailure,
    ResponseUsage,
    Status,
)
from serving.api.schemas import ChatCompletionRequest, Usage
from serving.api.service.asked import ToolUse
from serving.api.service.generation import ChoiceEvent
from serving.engine.messages import TokenLogprob

_ID_PREFIXES = {"text": "msg_", "reasoning": "rs_", "call": "fc_"}


class ResponseFraming:
    """Frames /v1/responses.

    Args:
      body: the request.
      asked, facts: of the chat completion that it was made to.
    """

    wire = NAMED_EVENTS

    def __init__(self, body: ResponseRequest, asked: Asked[ChatCompletionRequest], facts: CallFacts) -> None:
        self.call_id = facts.call_id
        self._facts = facts
        self._body = body
        self._params = asked.params
        self._created = int(time.time())
        self._completed: int | None = None
        self._blocks = Blocks(facts, asked.tools or ToolUse(output=OutputFormat()))
        self._ids: list[str] = []
        """Of the items, by block."""
        self._logprobs: list[list[bytes]] = []
        """Of the items' tokens, as JSON: a stream sends those of a text four times."""
        self._sequence = 0
        self._failure: ResponseFailure | None = None

    def opening(self) -> list[msgspec.Struct]:
        return self._numbered(
            ResponseCreated(response=self._response("in_progress")),
            ResponseInProgress(response=self._response("in_progress")),
        )

    def take(self, choice_event: ChoiceEvent) -> None:
        self._take(choice_event)

    def _take(self, choice_event: ChoiceEvent) -> list[Step]:
        steps = self._blocks.take(choice_event.event)
        self._ids += [new_id(_ID_PREFIXES[block.kind]) for block in self._blocks.all[len(self._ids) :]]
        self._logprobs += [[] for _ in self._blocks.all[len(self._logprobs) :]]
        for step in steps:
            if isinstance(step, Added) and step.logprobs:
                entries = chat_logprobs(step.logprobs, self._facts.logprobs or 0)
                self._logprobs[step.block.index].append(msgspec.json.encode(entries)[1:-1])
        if self._blocks.ending is not None:
            self._completed = int(time.time())
        return steps

    def chunks(self, choice_event: ChoiceEvent) -> list[msgspec.Struct]:
        events: list[ResponseEvent] = []
        for step in self._take(choice_event):
            match step:
                case Opened(block):
                    events += self._opened(block)
                case Added(block, text, logprobs):
                    events.append(self._added(block, text, logprobs))
                case Closed(block):
                    events += self._closed(block)
        return self._numbered(*events)

    def closing(self) -> list[msgspec.Struct]:
        whole = self.whole()
        kind = ResponseIncomplete if whole.status == "incomplete" else ResponseCompleted
        return self._numbered(kind(response=whole))

    def failed(self, error: ApiError) -> list[msgspec.Struct]:
        self._failure = ResponseFailure(
            code="server_error" if error.status >= 500 else "invalid_prompt", message=error.message
        )
        return self._numbered(
            StreamError(message=error.message, code=error.code or error.type, param=error.param),
            ResponseFailed(response=self.whole()),
        )

    def usage(self) -> Usage:
        return self._blocks.usage()

    def whole(self) -> ModelResponse:
        if self._failure is not None:
            return self._response("failed")
        match self._blocks.ending:
            case None:
                return self._response("in_progress")
            case "length":
                return self._response("incomplete")
            case _:
                return self._response("completed")

    def _numbered(self, *events: ResponseEvent) -> list[msgspec.Struct]:
        for event in events:
            event.sequence_number = self._sequence
            self._sequence += 1
        return list(events)

    # The events of a block.

    def _opened(self, block: Block) -> list[ResponseEvent]:
        index, item_id = block.index, self._ids[block.index]
        item = self._item(block, "in_progress", begun=False)
        added = OutputItemAdded(output_index=index, item=item)
        if block.kind == "call":
            return [added]
        part = self._part(block, begun=False)
        begun = ContentPartAdded(item_id=item_id, output_index=index, content_index=0, part=part)
        return [added, begun]

    def _added(self, block: Block, text: str, logprobs: Sequence[TokenLogprob]) -> ResponseEvent:
        index, item_id = block.index, self._ids[block.index]
        if block.kind == "call":
            return FunctionCallArgumentsDelta(item_id=item_id, output_index=index, delta=text)
        if block.kind == "reasoning":
            return ReasoningTextDelta(item_id=item_id, output_index=index, content_index=0, delta=text)
        return OutputTextDelta(
            item_id=item_id,
            output_index=index,
            content_index=0,
            delta=text,
            logprobs=chat_logprobs(logprobs, self._facts.logprobs or 0),
        )

    def _closed(self, block: Block) -> list[ResponseEvent]:
        index, item_id = block.index, self._ids[block.index]
        ended = OutputItemDone(output_index=index, item=self._item(block, self._status(block)))
        if block.kind == "call":
            whole = FunctionCallArgumentsDone(
                item_id=item_id, output_index=index, name=block.name, arguments=block.text
            )
            return [whole, ended]
        part = self._part(block)
        done: ResponseEvent
        if isinstance(part, OutputText):
            done = OutputTextDone(
                item_id=item_id,
                output_index=index,
                content_index=0,
                text=part.text,
                logprobs=part.logprobs,
            )
        else:
            done = ReasoningTextDone(item_id=item_id, output_index=index, content_index=0, text=part.text)
        finished = ContentPartDone(item_id=item_id, output_index=index, content_index=0, part=part)
        return [done, finished, ended]

    def _item(self, block: Block, status: ItemStatus, *, begun: bool = True) -> OutputItem:
        """The item of a block.

        Args:
          begun: whether it has what there is of it so far.
        """
        item_id = self._ids[block.index]
        if block.kind == "call":
            arguments = block.text if begun else ""
            return FunctionCallItem(
                id=item_id, status=status, call_id=block.call_id, name=block.name, arguments=arguments
            )
        part = self._part(block)
        if isinstance(part, OutputText):
            return OutputMessage(id=item_id, status=status, content=[part] if begun else [])
        return ReasoningItem(id=item_id, status=status, content=[part] if begun else [])

    def _part(self, block: Block, *, begun: bool = True) -> Part:
        text = block.text if begun else ""
        if block.kind == "reasoning":
            return ReasoningTextPart(text=text)
        return OutputText(text=text, logprobs=self._all_logprobs(block) if begun else [])

    def _all_logprobs(self, block: Block) -> Any:
        return msgspec.Raw(b"[" + b",".join(self._logprobs[block.index]) + b"]")

    # The response.

    def _response(self, status: Status) -> ModelResponse:
        body, params, ended = self._body, self._params, status != "in_progress"
        text, reasoning = body.text or TextOptions(), body.reasoning or ReasoningOptions()
        response = ModelResponse(
            id=self.call_id,
            created_at=self._created,
            status=status,
            completed_at=self._completed if status == "completed" else None,
            error=self._failure,
            incomplete_details=IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None,
            model=self._facts.model_id,
            output=[self._item(block, self._status(block)) for block in self._blocks.all],
            usage=self._usage() if ended else None,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            max_tool_calls=body.max_tool_calls,
            metadata=body.metadata or {},
            parallel_tool_calls=body.parallel_tool_calls is not False,
            prompt_cache_key=body.prompt_cache_key,
            prompt_cache_retention=body.prompt_cache_retention,
            reasoning=reasoning,
            safety_identifier=body.safety_identifier,
            temperature=params.temperature,
            text=TextOptions(format=text.format or TextFormat(type="text"), verbosity=text.verbosity or "medium"),
            tool_choice=body.tool_choice or "auto",
            tools=body.tools or [],
            top_logprobs=body.top_logprobs or 0,
            top_p=params.top_p,
            truncation="auto" if body.truncation == "auto" else "disabled",
            user=body.user,
        )
        if ended:
            response.timings, response.xlora = self._blocks.timings(), self._blocks.xlora()
        return response

    def _usage(self) -> ResponseUsage:
        usage = self._blocks.usage()
        return ResponseUsage(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(
                reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
            ),
            total_tokens=usage.total_tokens,
        )

    def _status(self, block: Block) -> ItemStatus:
        if not block.closed:
            return "in_progress" if self._failure is None else "incomplete"
        return "incomplete" if block.cut else "completed"
