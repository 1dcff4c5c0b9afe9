"""POST /v1/chat/completions."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency

from serving.api.requests.adapter_request import adapter_use
from serving.api.requests.prompts import encode_chat, fit
from serving.api.requests.request_body import read_request
from serving.api.requests.sampling_request import choices_of, engine_requests, sampling_params, usage_in_stream
from serving.api.responses.framing import ChatFraming, new_id
from serving.api.responses.respond import respond
from serving.api.schemas import ChatCompletionRequest
from serving.api.service.lifecycle import ServiceHost

_decoder = msgspec.json.Decoder(ChatCompletionRequest)


class ChatController(Controller):
    path = "/v1/chat/completions"

    @post(status_code=200, operation_id="createChatCompletion")
    async def create(self, request: Request[Any, Any, Any], host: NamedDependency[ServiceHost]) -> Response[Any]:
        """Answer a conversation."""
        body = await read_request(request, _decoder, "chat", strict=host.settings.strict_fields)
        service, settings = host.service, host.settings
        card = service.card
        use = adapter_use(body, service.models, card)
        n = choices_of(body, most=settings.max_seqs)
        usage = usage_in_stream(body)
        params = sampling_params(body, card, default_max_tokens=settings.max_tokens)
        prompt = fit(
            await encode_chat(
                service,
                body.messages,
                limiter=host.encoding,
                rendering=host.rendering,
                truncate=settings.truncate_sequence,
            ),
            card,
            max_tokens=params.max_tokens,
            truncate=settings.truncate_sequence,
            bos_id=service.tokenizer.bos_id,
            param="messages",
        )
        call_id = new_id("chatcmpl")
        answer = ChatFraming(
            call_id,
            card,
            prompts=[prompt],
            n=n,
            usage=usage,
            logprobs=params.logprobs,
            model_id=use.model_id,
            told=use.told,
        )
        requests = engine_requests(call_id, [prompt], params, use, n=n, max_model_len=card.max_model_len)
        host.metrics.count(use, len(requests))
        return await respond(request, host, service, requests, answer, stream=bool(body.stream))
