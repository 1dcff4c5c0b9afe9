"""POST /completion: completions in llama.cpp's own shape, which its editor plug-ins and other clients of it speak."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from litestar import Response

from mistral_jax.runtime.sampling.params import SAMPLERS
from serving.api.controllers.generation import GENERATION_ERRORS, Asked, Generating
from serving.api.controllers.llama_cpp.completion_fields import FIELDS
from serving.api.endpoint import Call, Endpoint, OneOf
from serving.api.errors import ApiError, InvalidRequestError
from serving.api.requests.encoding import in_turns
from serving.api.requests.llama_completion import (
    RENAMES,
    TranslatedCompletion,
    encode_llama_prompts,
    translated,
)
from serving.api.requests.sampling_request import OwnFields
from serving.api.responses.framing import CallFacts
from serving.api.responses.llama.framing import LlamaFraming, LlamaOptions
from serving.api.responses.llama.settings import generation_settings
from serving.api.schemas import LlamaCompletion, LlamaCompletionChunk, LlamaCompletionRequest
from serving.api.schemas.documented import if_field
from serving.api.service.asked import Prompt


async def _encode(asked: Asked[TranslatedCompletion]) -> Sequence[Prompt]:
    settings = asked.host.settings
    work = encode_llama_prompts(asked.service, asked.body, most=settings.max_queue, truncate=settings.truncate_sequence)
    prompts = await in_turns(work, asked.host.encoding)
    if len(prompts) * asked.n > settings.max_queue:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with n_cmpl = {asked.n} make {len(prompts) * asked.n} completions; one request "
            f"may ask for {settings.max_queue} (--max-queue)",
            param="n_cmpl",
        )
    return prompts


async def _frame(asked: Asked[TranslatedCompletion], facts: CallFacts) -> LlamaFraming:
    body = asked.body
    settings = generation_settings(asked.params, repeat_last_n=asked.host.settings.repeat_last_n, samplers=SAMPLERS)
    settings = msgspec.structs.replace(
        settings,
        n_probs=body.n_probs,
        stop=list(asked.params.stop),
        stream=bool(body.stream),
        lora=msgspec.UNSET if body.lora is None else body.lora,
    )
    options = LlamaOptions(
        settings=settings,
        streamed=bool(body.stream),
        probabilities=body.n_probs,
        fields=body.response_fields,
    )
    return LlamaFraming(facts, options)


_PICKED = if_field("response_fields", "the requested fields; `a/b` is field b of a, under this name")
_Picked = Annotated[dict[str, Any], _PICKED]
_GENERATING = Generating(
    id_prefix="cmpl-",
    own_fields=OwnFields(
        token_limit=lambda body: ("n_predict", body.max_tokens),
        logprobs=lambda body: body.n_probs or None,
        logprobs_count="n_probs",
        may_be_empty=True,
    ),
    prompt_field="prompt",
    encode=_encode,
    frame=_frame,
)


async def _complete(call: Call[LlamaCompletionRequest]) -> Response[Any]:
    host = call.host
    body = translated(call.body, host.service, repeat_last_n=host.settings.repeat_last_n)
    try:
        return await _GENERATING(Call(request=call.request, host=host, body=body, endpoints=call.endpoints))
    except ApiError as error:
        RENAMES.apply(error)
        raise


LLAMA_COMPLETION = Endpoint(
    path="/completion",
    method="POST",
    operation_id="createLlamaCompletion",
    summary="Create a completion, as llama.cpp",
    request=LlamaCompletionRequest,
    response=OneOf(
        "the completion; a list of several prompts or with n_cmpl",
        (LlamaCompletion, list[LlamaCompletion], _Picked, Annotated[list[dict[str, Any]], _PICKED]),
    ),
    chunk=OneOf("parts of the text, and at last the rest", (LlamaCompletionChunk, LlamaCompletion, _Picked)),
    fields=FIELDS,
    example={"prompt": "Once upon a time", "n_predict": 32},
    errors=GENERATION_ERRORS,
    link="completion",
    handler=_complete,
)
