"""POST /v1/chat/completions: generates the next message of a chat."""

from __future__ import annotations

from collections.abc import Sequence

from litestar.types import Scope

from serving.api.controllers.generation import GENERATION_ERRORS, Asked, Generating
from serving.api.controllers.generation_fields import CHAT, fields_of, objects_of
from serving.api.endpoint import Endpoint
from serving.api.errors import InvalidRequestError
from serving.api.requests.chat_rendering import template_with_reasoning
from serving.api.requests.prompts import chat_encoder, encode_chat
from serving.api.requests.sampling_request import OwnFields
from serving.api.requests.tool_request import tool_use
from serving.api.responses.framing import CallFacts, ChatFraming, Framing
from serving.api.responses.parsed.chat import ParsedChatFraming
from serving.api.schemas import ChatCompletion, ChatCompletionChunk, ChatCompletionRequest
from serving.api.service.asked import Prompt, ToolUse
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service


async def encode_chat_request(
    body: ChatCompletionRequest,
    service: Service,
    host: ServiceHost,
    tools: ToolUse | None,
    scope: Scope,
    *,
    truncates: bool,
) -> Prompt:
    """The prompt of a chat completion.

    Args:
      scope: of the request, whose response names variables that the template does not read.
      truncates: whether it may be longer than the context.

    Raises:
      InvalidRequestError: see `encode_chat` and `template_with_reasoning`.
      ContextLengthError: see `encode_chat`.
    """
    template = template_with_reasoning(body, chat_encoder(service), scope, strict=host.settings.strict_fields)
    return await encode_chat(
        service,
        body.messages,
        tools=() if tools is None else tools.shown,
        limiter=host.encoding,
        rendering=host.rendering,
        truncate=truncates,
        template=template,
    )


async def _encode(asked: Asked[ChatCompletionRequest]) -> Sequence[Prompt]:
    prompt = await encode_chat_request(
        asked.body, asked.service, asked.host, asked.tools, asked.scope, truncates=asked.truncates
    )
    return [prompt]


async def _frame(asked: Asked[ChatCompletionRequest], facts: CallFacts) -> Framing:
    return ChatFraming(facts) if asked.tools is None else ParsedChatFraming(facts, asked.tools)


def chat_tools(body: ChatCompletionRequest, service: Service) -> ToolUse | None:
    """The tools of a chat completion, and what the model writes besides text; None: only text.

    Raises:
      InvalidRequestError: see `tool_use`.
    """
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


GENERATE_CHAT = Generating(
    id_prefix="chatcmpl-",
    own_fields=OwnFields(token_limit=_token_limit, logprobs=_logprobs, logprobs_count="top_logprobs"),
    prompt_field="messages",
    encode=_encode,
    frame=_frame,
    tools=chat_tools,
)
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
    handler=GENERATE_CHAT,
)
