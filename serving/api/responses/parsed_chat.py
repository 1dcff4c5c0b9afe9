"""Chat completions that may have more than text in them: reasoning and tool calls."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from mistral_jax.chat.output.deltas import CallArguments, CallBegin, ContentText, Delta, ReasoningText
from serving.api.responses.framing import CallFacts, ChatFraming
from serving.api.responses.parsed_choice import ParsedCall, ParsedChoice
from serving.api.schemas import (
    AssistantMessage,
    ChatChunkChoice,
    ChatCompletionChunk,
    ChatDelta,
    ChatFinishReason,
    Usage,
)
from serving.api.schemas.tools import (
    FunctionCall,
    FunctionCallDelta,
    ToolCall,
    ToolCallDelta,
)
from serving.api.schemas.usage import CompletionTokensDetails
from serving.api.service.asked import ToolUse
from serving.api.service.generation import ChoiceEvent
from serving.engine.messages import TokenLogprob


class ParsedChatFraming(ChatFraming):
    """Frames /v1/chat/completions for models that may call tools or mark their reasoning."""

    def __init__(self, facts: CallFacts, tools: ToolUse) -> None:
        super().__init__(facts)
        self._tools = tools
        self._parsed = [
            ParsedChoice(tools, in_reasoning=prompt.in_reasoning) for prompt in facts.prompts for _ in range(facts.n)
        ]

    def take(self, choice_event: ChoiceEvent) -> None:
        self._take(choice_event)

    def _take(self, choice_event: ChoiceEvent) -> tuple[list[Delta], list[TokenLogprob]]:
        super().take(choice_event)
        return self._parsed[choice_event.index].take(choice_event.event)

    def _chunks(self, choice_event: ChoiceEvent) -> list[ChatCompletionChunk]:
        deltas, logprobs = self._take(choice_event)
        index, event = choice_event.index, choice_event.event
        made = [self._delta(delta) for delta in deltas]
        added = [ChatChunkChoice(index=index, delta=delta) for delta in made if delta is not None]
        if not added and (logprobs or event.scalings or event.token_ids):
            added = [self._nothing(index)]
        if logprobs and self._top is not None:
            content = [choice for choice in added if isinstance(choice.delta.content, str)]
            (content or added)[-1].logprobs = self._logprobs(self._named(tuple(logprobs)))
        return self._finished(choice_event, added)

    def _delta(self, delta: Delta) -> ChatDelta | None:
        """A delta as a chunk has it; None: the older form has no place for it."""
        match delta:
            case ContentText(text):
                return ChatDelta(content=text)
            case ReasoningText(text):
                return ChatDelta(reasoning_content=text)
            case CallBegin(index, call_id, name):
                function = FunctionCallDelta(name=name)
                call = ToolCallDelta(index=index, id=call_id, type="function", function=function)
            case CallArguments(index, text):
                function = FunctionCallDelta(arguments=text)
                call = ToolCallDelta(index=index, function=function)
        if self._tools.legacy:
            return ChatDelta(function_call=function) if index == 0 else None
        return ChatDelta(tool_calls=[call])

    def _finish_reason(self, index: int) -> ChatFinishReason | None:
        reason = self._parsed[index].finish_reason
        return "function_call" if reason == "tool_calls" and self._tools.legacy else reason

    def usage(self) -> Usage:
        usage = super().usage()
        if self._tools.output.reasoning is not None:
            tokens = sum(parsed.reasoning_tokens for parsed in self._parsed)
            usage.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=tokens)
        return usage

    def _message(self, index: int) -> AssistantMessage:
        parsed = self._parsed[index]
        text = "".join(parsed.content)
        calls: list[ToolCall] | UnsetType = UNSET
        function: FunctionCall | UnsetType = UNSET
        if parsed.calls and self._tools.legacy:
            function = _function(parsed.calls[0])
        elif parsed.calls:
            calls = [ToolCall(id=call.id, function=_function(call)) for call in parsed.calls]
        return AssistantMessage(
            content=None if parsed.calls and not text else text,
            reasoning_content="".join(parsed.reasoning) or UNSET,
            tool_calls=calls,
            function_call=function,
        )

    def _content_logprobs(self, index: int) -> Sequence[TokenLogprob]:
        return self._named(tuple(self._parsed[index].logprobs))


def _function(call: ParsedCall) -> FunctionCall:
    return FunctionCall(name=call.name, arguments="".join(call.arguments))
