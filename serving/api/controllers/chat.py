"""POST /v1/chat/completions: generates the next message of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from serving.api.controllers.generation import GENERATION_ERRORS, Asked, Generating
from serving.api.controllers.generation_fields import CHAT, fields_of, objects_of
from serving.api.endpoint import Endpoint
from serving.api.errors import InvalidRequestError
from serving.api.requests.prompts import encode_chat
from serving.api.requests.sampling_request import OwnFields
from serving.api.requests.template_use import check_once, template_use
from serving.api.requests.tool_request import reasoning_variables, tool_use
from serving.api.requests.unknown_fields import report_ignored, unused
from serving.api.responses.framing import CallFacts, ChatFraming
from serving.api.responses.parsed_chat import ParsedChatFraming
from serving.api.schemas import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from serving.api.service.asked import Prompt, ToolUse
from serving.api.service.service import Service


async def _encode(asked: Asked[ChatCompletionRequest]) -> Sequence[Prompt]:
    settings = asked.host.settings
    chat = asked.service.chat
    template = template_use(asked.body)
    if chat is not None:
        template, unread = template.without_unused(chat)
        report_ignored(asked.scope, unused("chat_template_kwargs", unread), strict=settings.strict_fields)
        reasoning = reasoning_variables(asked.body, chat)
        check_once(template, reasoning)
        template = replace(template, variables={**template.variables, **reasoning})
    prompt = await encode_chat(
        asked.service,
        asked.body.messages,
        tools=() if asked.tools is None else asked.tools.shown,
        limiter=asked.host.encoding,
        rendering=asked.host.rendering,
        truncate=asked.truncates,
        template=template,
    )
    return [prompt]


async def _frame(asked: Asked[ChatCompletionRequest], facts: CallFacts) -> ChatFraming:
    return ChatFraming(facts) if asked.tools is None else ParsedChatFraming(facts, asked.tools)


def _tools(body: ChatCompletionRequest, service: Service) -> ToolUse | None:
    if service.chat is None:
        return None  # refused when the messages are encoded
    used = tool_use(body, service.chat)
    return used if used.callable or used.output.reasoning is not None else None


def _token_limit(body: ChatCompletionRequest) -> tuple[str, int | None]:
    if body.max_completion_tokens is not None:
        return "max_completion_tokens", body.max_completion_tokens
    return "max_tokens", body.max_tokens


def _logprobs(body: ChatCompletionRequest) -> int | None:
    if body.logprobs:
        return body.top_logprobs or 0
    if body.top_logprobs:
        raise InvalidRequestError("top_logprobs: needs logprobs: true", param="top_logprobs")
    return None


CHAT_COMPLETIONS = Endpoint(
    path="/v1/chat/completions",
    method="POST",
    operation_id="createChatCompletion",
    summary="Create a chat completion",
    request=ChatCompletionRequest,
    response=ChatCompletion,
    chunk=ChatCompletionChunk,
    fields=fields_of(CHAT),
    objects=objects_of(CHAT),
    example={"model": "default", "messages": [{"role": "user", "content": "Hello!"}], "stream": False},
    errors=GENERATION_ERRORS,
    link="chat",
    handler=Generating(
        id_prefix="chatcmpl",
        own_fields=OwnFields(token_limit=_token_limit, logprobs=_logprobs, logprobs_count="top_logprobs"),
        prompt_field="messages",
        encode=_encode,
        frame=_frame,
        tools=_tools,
    ),
)
