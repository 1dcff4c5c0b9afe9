"""POST /v1/messages: makes a message, as Anthropic. POST /v1/messages/count_tokens: counts the tokens of its prompt."""

from __future__ import annotations

from serving.api.controllers.generation import GENERATION_ERRORS
from serving.api.controllers.translated import Translating, count_tokens, off_the_loop
from serving.api.endpoint import Call, Endpoint, OneOf
from serving.api.messages_api.errors import MESSAGE_ERRORS
from serving.api.messages_api.fields import COUNT_TOKENS_FIELDS, MESSAGES_FIELDS, MESSAGES_OBJECTS
from serving.api.messages_api.framing import MessageFraming
from serving.api.messages_api.request import CountTokensRequest, MessagesRequest
from serving.api.messages_api.response import EVENTS, Message, TokenCount
from serving.api.messages_api.translation import chat_prompt, chat_request, renames_of


async def _count_tokens(call: Call[CountTokensRequest]) -> TokenCount:
    chat = await off_the_loop(call, chat_prompt, call.body, call.host.loaded_service.chat)
    return TokenCount(input_tokens=await count_tokens(call, chat, renames_of(call.body)))


MESSAGES = Endpoint(
    path="/v1/messages",
    method="POST",
    operation_id="createMessage",
    summary="Create a message, as Anthropic",
    request=MessagesRequest,
    response=Message,
    chunk=OneOf("the events, by type", EVENTS),
    fields=MESSAGES_FIELDS,
    objects=MESSAGES_OBJECTS,
    example={"model": "default", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello!"}]},
    errors=GENERATION_ERRORS,
    error_shape=MESSAGE_ERRORS,
    link="messages",
    handler=Translating(id_prefix="msg_", translate=chat_request, renames=renames_of, frame=MessageFraming),
)
COUNT_TOKENS = Endpoint(
    path="/v1/messages/count_tokens",
    method="POST",
    operation_id="countMessageTokens",
    summary="Count the tokens of a message's prompt, as Anthropic",
    request=CountTokensRequest,
    response=TokenCount,
    fields=COUNT_TOKENS_FIELDS,
    objects=MESSAGES_OBJECTS,
    example={"messages": [{"role": "user", "content": "Hello!"}]},
    errors=(404,),
    error_shape=MESSAGE_ERRORS,
    handler=_count_tokens,
)
