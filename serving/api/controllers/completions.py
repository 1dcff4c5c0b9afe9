"""POST /v1/completions."""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Controller, Request, Response, post
from litestar.di import NamedDependency

from serving.api.errors import InvalidRequestError
from serving.api.requests.adapter_request import adapter_use
from serving.api.requests.prompts import encode_prompts, fit
from serving.api.requests.request_body import read_request
from serving.api.requests.sampling_request import choices_of, engine_requests, sampling_params, usage_in_stream
from serving.api.responses.echo import echo_prompts
from serving.api.responses.framing import CompletionFraming, new_id
from serving.api.responses.respond import respond
from serving.api.schemas import CompletionRequest
from serving.api.service.lifecycle import ServiceHost

_decoder = msgspec.json.Decoder(CompletionRequest)


class CompletionsController(Controller):
    path = "/v1/completions"

    @post(status_code=200, operation_id="createCompletion")
    async def create(self, request: Request[Any, Any, Any], host: NamedDependency[ServiceHost]) -> Response[Any]:
        """Continue one or several texts."""
        body = await read_request(request, _decoder, "completions", strict=host.settings.strict_fields)
        service, settings = host.service, host.settings
        card = service.card
        use = adapter_use(body, service.models, card)
        n = choices_of(body, most=settings.max_seqs)
        usage = usage_in_stream(body)
        params = sampling_params(body, card, default_max_tokens=settings.max_tokens)
        encoded = await encode_prompts(
            service,
            body.prompt,
            most=settings.max_queue,
            limiter=host.encoding,
            echo=bool(body.echo),
            truncate=settings.truncate_sequence,
        )
        if len(encoded) * n > settings.max_queue:
            raise InvalidRequestError(
                f"{len(encoded)} prompts with n = {n} make {len(encoded) * n} answers; one request may ask for "
                f"{settings.max_queue} (--max-queue)",
                param="n",
            )
        prompts = [
            fit(
                prompt,
                card,
                max_tokens=params.max_tokens,
                truncate=settings.truncate_sequence,
                bos_id=service.tokenizer.bos_id,
                param="prompt",
            )
            for prompt in encoded
        ]
        echoes = []
        if body.echo:
            echoes = await echo_prompts(
                service.tokenizer, prompts, n=n, logprobs=params.logprobs, limiter=host.encoding
            )
        call_id = new_id("cmpl")
        answer = CompletionFraming(
            call_id,
            card,
            prompts=prompts,
            n=n,
            usage=usage,
            logprobs=params.logprobs,
            model_id=use.model_id,
            told=use.told,
            echoes=echoes,
        )
        requests = engine_requests(
            call_id,
            prompts,
            params,
            use,
            n=n,
            max_model_len=card.max_model_len,
            score_prompts=bool(body.echo) and params.logprobs is not None,
        )
        host.metrics.count(use, len(requests))
        return await respond(request, host, service, requests, answer, stream=bool(body.stream))
