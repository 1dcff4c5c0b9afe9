"""POST /v1/responses: makes a response. POST /v1/responses/input_tokens: counts the tokens of its prompt."""

from __future__ import annotations

from serving.api.controllers.generation import GENERATION_ERRORS
from serving.api.controllers.translated import Translating, count_tokens, off_the_loop
from serving.api.endpoint import Call, Endpoint, OneOf
from serving.api.responses_api.events import EVENTS
from serving.api.responses_api.fields import (
    INPUT_TOKENS_FIELDS,
    RESPONSE_FIELDS,
    RESPONSE_OBJECTS,
)
from serving.api.responses_api.framing import ResponseFraming
from serving.api.responses_api.request import InputTokensRequest, ResponseRequest
from serving.api.responses_api.response import InputTokens, ModelResponse
from serving.api.responses_api.translation import RENAMES, chat_prompt, chat_request


async def _input_tokens(call: Call[InputTokensRequest]) -> InputTokens:
    chat = await off_the_loop(call, chat_prompt, call.body)
    return InputTokens(input_tokens=await count_tokens(call, chat, RENAMES))


RESPONSES = Endpoint(
    path="/v1/responses",
    method="POST",
    operation_id="createResponse",
    summary="Create a response",
    request=ResponseRequest,
    response=ModelResponse,
    chunk=OneOf("the events, by type", EVENTS),
    fields=RESPONSE_FIELDS,
    objects=RESPONSE_OBJECTS,
    example={"model": "default", "input": "Hello!"},
    errors=GENERATION_ERRORS,
    link="responses",
    handler=Translating(
        id_prefix="resp_",
        translate=lambda body, _chat: chat_request(body),
        renames=lambda _body: RENAMES,
        frame=ResponseFraming,
    ),
)
INPUT_TOKENS = Endpoint(
    path="/v1/responses/input_tokens",
    method="POST",
    operation_id="countInputTokens",
    summary="Count the tokens of a response's prompt",
    request=InputTokensRequest,
    response=InputTokens,
    fields=INPUT_TOKENS_FIELDS,
    objects=RESPONSE_OBJECTS,
    example={"input": "Hello!"},
    errors=(404,),
    handler=_input_tokens,
)
