"""POST /v1/completions: continues or scores one or more prompts."""

from __future__ import annotations

from collections.abc import Sequence

from serving.api.controllers.generation import GENERATION_ERRORS, Asked, Generating
from serving.api.controllers.generation_fields import TEXT, fields_of, objects_of
from serving.api.endpoint import Endpoint
from serving.api.errors import InvalidRequestError
from serving.api.requests.prompts import encode_prompts
from serving.api.requests.sampling_request import OwnFields, candidates_of
from serving.api.responses.best_of import BestOf
from serving.api.responses.completion_framing import CompletionFraming
from serving.api.responses.framing import CallFacts, Framing
from serving.api.responses.scores.echo import Echo, echo_prompts
from serving.api.schemas import Completion, CompletionRequest
from serving.api.service.asked import Prompt


async def _encode(asked: Asked[CompletionRequest]) -> Sequence[Prompt]:
    settings, n = asked.host.settings, asked.candidates
    prompts = await encode_prompts(
        asked.service,
        asked.body.prompt,
        most=settings.max_queue,
        limiter=asked.host.encoding,
        suffix=asked.body.suffix,
        echo=bool(asked.body.echo),
        truncate=asked.truncates,
    )
    if len(prompts) * n > settings.max_queue:
        raise InvalidRequestError(
            f"{len(prompts)} prompts with {n} completions each make {len(prompts) * n} completions; one request may "
            f"ask for {settings.max_queue} (--max-queue)",
            param="n",
        )
    return prompts


async def _frame(asked: Asked[CompletionRequest], facts: CallFacts) -> Framing:
    echoes: Sequence[Echo] = ()
    if asked.body.echo:
        echoes = await echo_prompts(
            asked.service.tokenizer, facts.prompts, logprobs=facts.logprobs is not None, limiter=asked.host.encoding
        )
    framing = CompletionFraming(facts, echoes=echoes)
    return BestOf(framing, candidates=facts.n, n=asked.n) if facts.n > asked.n else framing


COMPLETIONS = Endpoint(
    path="/v1/completions",
    method="POST",
    operation_id="createCompletion",
    summary="Create a completion",
    request=CompletionRequest,
    response=Completion,
    chunk=Completion,
    fields=fields_of(TEXT),
    objects=objects_of(TEXT),
    example={"model": "default", "prompt": "Once upon a time", "max_tokens": 32},
    errors=GENERATION_ERRORS,
    link="completions",
    handler=Generating(
        id_prefix="cmpl-",
        own_fields=OwnFields(
            token_limit=lambda body: ("max_tokens", body.max_tokens),
            logprobs=lambda body: body.logprobs,
            logprobs_count="logprobs",
            may_be_empty=True,
        ),
        prompt_field="prompt",
        encode=_encode,
        frame=_frame,
        candidates=candidates_of,
        echoes_logprobs=lambda body: bool(body.echo),
    ),
)
