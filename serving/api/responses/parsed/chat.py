"""Chat completions that may have more than text in them: reasoning and tool calls."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from mistral_jax.chat.output.deltas import CallArguments, CallBegin, ContentText, Delta, ReasoningText
from serving.api.responses.framing import CallFacts, ChatFraming
from serving.api.responses.parsed.choice import ParsedCall, ParsedChoice
from serving.api.schemas import (
    AssistantMessage,
    ChatChoice,
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
        choice, parsed = self.choices[index], self._parsed[index]
        made = [self._delta(delta) for delta in deltas]
        chunks = [ChatChunkChoice(index=index, delta=delta) for delta in made if delta is not None]
        if not chunks and (logprobs or event.scalings or event.token_ids):
            chunks = [ChatChunkChoice(index=index, delta=ChatDelta())]
        if chunks:
            chunks[0].token_ids, chunks[0].xlora = choice.ids_of(event), choice.xlora_of(event)
        if logprobs and self._top is not None:
            content = [chunk for chunk in chunks if isinstance(chunk.delta.content, str)]
            (content or chunks)[-1].logprobs = self._logprobs(self._named(logprobs))
        if parsed.finish_reason is not None:
            end = ChatChunkChoice(index=index, delta=ChatDelta(), finish_reason=self._reason(parsed.finish_reason))
            end.stop_reason, end.xlora = choice.stop_reason, choice.xlora_at_end()
            chunks.append(end)
        return [self._chunk(chunk) for chunk in chunks]

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

    def _reason(self, reason: ChatFinishReason | None) -> ChatFinishReason | None:
        return "function_call" if reason == "tool_calls" and self._tools.legacy else reason

    def usage(self) -> Usage:
        usage = super().usage()
        if self._tools.output.reasoning is not None:
            tokens = sum(parsed.reasoning_tokens for parsed in self._parsed)
            usage.completion_tokens_details = CompletionTokensDetails(reasoning_tokens=tokens)
        return usage

    def _choice(self, index: int) -> ChatChoice:
        choice, parsed = super()._choice(index), self._parsed[index]
        choice.message = self._message(parsed)
        choice.logprobs = None if self._top is None else self._logprobs(self._named(parsed.logprobs))
        choice.finish_reason = self._reason(parsed.finish_reason)
        return choice

    def _message(self, parsed: ParsedChoice) -> AssistantMessage:
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


def _function(call: ParsedCall) -> FunctionCall:
    return FunctionCall(name=call.name, arguments="".join(call.arguments))
