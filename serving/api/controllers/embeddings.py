"""POST /v1/embeddings: a vector for each text, from the hidden states of its tokens."""

from __future__ import annotations

from functools import partial
from typing import Any

import anyio.to_thread
import msgspec
from litestar import Response

from serving.api.controllers.generation import GENERATION_ERRORS
from serving.api.endpoint import Call, Endpoint, Field
from serving.api.errors import NotEnabledError
from serving.api.log.exchange import exchange_of
from serving.api.requests.adapter_request import adapter_use
from serving.api.requests.embedding_request import check_dimensions, embedding_requests, encode_inputs
from serving.api.responses.embeddings import embedding_list, run_texts
from serving.api.responses.framing import new_id
from serving.api.responses.respond import while_connected
from serving.api.schemas import EmbeddingList, EmbeddingRequest, SamplingFields, Usage


async def _embed(call: Call[EmbeddingRequest]) -> Response[Any]:
    body, host = call.body, call.host
    service, pooling = host.service, host.settings.pooling
    if pooling == "none":
        raise NotEnabledError("this server makes no embeddings; start it with --pooling mean or --pooling last")
    named = SamplingFields(model=body.model, adapter=body.adapter, adapters=body.adapters, lora=body.lora)
    use = adapter_use(named, service.models, service.card)
    check_dimensions(body.dimensions, service.card.hidden_size)
    prompts = await encode_inputs(body, host, service)
    call_id = new_id("embd")
    requests = embedding_requests(call_id, prompts, use, body.pooling or pooling)
    host.metrics.count(use, len(requests))
    running = run_texts(call.request, host, service, requests, call_id=call_id)
    vectors = await while_connected(call.request, running)
    tokens = sum(len(prompt.tokens) for prompt in prompts)
    exchange = exchange_of(call.request.scope)
    exchange.usage = Usage(prompt_tokens=tokens, completion_tokens=0, total_tokens=tokens)
    content = await anyio.to_thread.run_sync(
        partial(
            embedding_list,
            vectors,
            model=use.model_id,
            prompt_tokens=tokens,
            dimensions=body.dimensions,
            encoding=body.encoding_format or "float",
        )
    )
    exchange.response = msgspec.Raw(content)
    return Response(content, status_code=200, media_type="application/json")


EMBEDDINGS = Endpoint(
    path="/v1/embeddings",
    method="POST",
    operation_id="createEmbedding",
    summary="Create embeddings of texts",
    request=EmbeddingRequest,
    response=EmbeddingList,
    fields=(
        Field(
            "input",
            "honoured",
            "text, list of texts, list of token ids, list of lists of token ids; at most 2048 of them. A text begins "
            "with BOS, if the model's prompts do",
        ),
        Field("model", "honoured", "as on /v1/completions; adapters and X-LoRA mixtures have embeddings of their own"),
        Field("encoding_format", "honoured", "float or base64 (float32, little-endian)"),
        Field("dimensions", "honoured", "the first ones, scaled to length 1 again"),
        Field("pooling", "honoured", "extension; mean or last; absent: the server's --pooling"),
        Field("adapter", "honoured", "extension; as on /v1/completions"),
        Field("adapters", "honoured", "extension; as on /v1/completions"),
        Field("lora", "honoured", "extension of llama.cpp; as on /v1/completions"),
        Field("user", "accepted", "a label"),
        Field("priority", "accepted", "extension of vLLM"),
        Field("add_special_tokens", "refused", "extension of vLLM; send token ids", neutral=(True,)),
        Field("truncate_prompt_tokens", "refused", "extension of vLLM; the server has --truncate-sequence"),
        Field("messages", "refused", "extension of vLLM; send texts"),
    ),
    example={"model": "default", "input": ["Once upon a time", "The end"]},
    errors=(*GENERATION_ERRORS, 501),
    link="embeddings",
    handler=_embed,
)
