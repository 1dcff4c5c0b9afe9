"""What the endpoints that generate text share: from a body to completions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from litestar import Response

from mistral_jax.runtime.sampling_params import SamplingParams
from serving.api.endpoint import Call
from serving.api.requests.adapter_request import adapter_use
from serving.api.requests.prompts import fit
from serving.api.requests.sampling_request import (
    OwnFields,
    choices_of,
    engine_requests,
    sampling_params,
    usage_in_stream,
)
from serving.api.responses.framing import CallFacts, Framing, new_id
from serving.api.responses.respond import respond
from serving.api.schemas import SamplingFields
from serving.api.service.asked import AdapterUse, Prompt, UsageInStream
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service

GENERATION_ERRORS = (400, 401, 403, 404, 408, 413, 415, 500, 503)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked[BodyT: SamplingFields]:
    """What one call asks for, before its prompts are encoded."""

    body: BodyT
    host: ServiceHost
    service: Service
    use: AdapterUse
    n: int
    """Completions of each prompt."""
    usage: UsageInStream
    params: SamplingParams


@dataclass(frozen=True, kw_only=True, slots=True)
class Generating[BodyT: SamplingFields]:
    """The handler of an endpoint that generates text; its fields are what such endpoints do differently."""

    id_prefix: str
    """Of the ids of its responses."""
    own_fields: OwnFields[BodyT]
    prompt_field: str
    """The field that errors about prompts name."""
    encode: Callable[[Asked[BodyT]], Awaitable[Sequence[Prompt]]]
    """The body's prompts, which may still be too long."""
    frame: Callable[[Asked[BodyT], CallFacts], Awaitable[Framing]]
    """What makes the endpoint's JSON of the completions."""
    scores_prompts: Callable[[Asked[BodyT]], bool] = lambda _asked: False
    """Whether the prompts' own log-probabilities are wanted."""

    async def __call__(self, call: Call[BodyT]) -> Response[Any]:
        body, host = call.body, call.host
        service, settings = host.service, host.settings
        card = service.card
        asked = Asked(
            body=body,
            host=host,
            service=service,
            use=adapter_use(body, service.models, card),
            n=choices_of(body, most=settings.max_seqs),
            usage=usage_in_stream(body),
            params=sampling_params(body, card, self.own_fields, default_max_tokens=settings.max_tokens),
        )
        prompts = [
            fit(
                prompt,
                card,
                max_tokens=asked.params.max_tokens,
                truncate=settings.truncate_sequence,
                bos_id=service.tokenizer.bos_id,
                param=self.prompt_field,
            )
            for prompt in await self.encode(asked)
        ]
        facts = CallFacts(
            call_id=new_id(self.id_prefix),
            card=card,
            model_id=asked.use.model_id,
            prompts=prompts,
            n=asked.n,
            usage=asked.usage,
            logprobs=asked.params.logprobs,
            told=asked.use.told,
        )
        framing = await self.frame(asked, facts)
        requests = engine_requests(
            facts.call_id,
            prompts,
            asked.params,
            asked.use,
            n=asked.n,
            max_model_len=card.max_model_len,
            score_prompts=self.scores_prompts(asked),
        )
        host.metrics.count(asked.use, len(requests))
        return await respond(call.request, host, service, requests, framing, stream=bool(body.stream))
