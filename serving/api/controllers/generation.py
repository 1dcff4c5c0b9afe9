"""The handler shared by the endpoints that generate text: from a body to completions."""

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
    times_in_stream,
    usage_in_stream,
)
from serving.api.responses.framing import CallFacts, Framing, new_id
from serving.api.responses.respond import respond
from serving.api.schemas import SamplingFields
from serving.api.service.asked import AdapterUse, Prompt, ToolUse, UsageInStream
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service
from serving.engine.messages import Work

GENERATION_ERRORS = (400, 401, 403, 404, 408, 413, 415, 499, 500, 503)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked[BodyT: SamplingFields]:
    """The parsed contents of one call, before its prompts are encoded."""

    body: BodyT
    host: ServiceHost
    service: Service
    use: AdapterUse
    n: int
    """Completions of each prompt."""
    usage: UsageInStream
    params: SamplingParams
    tools: ToolUse | None = None
    """Set if the model may write more than text: tool calls or reasoning."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generating[BodyT: SamplingFields]:
    """The handler of an endpoint that generates text; its fields are what differs between endpoints."""

    id_prefix: str
    """Prefix of response ids."""
    own_fields: OwnFields[BodyT]
    prompt_field: str
    """The field to name in errors about prompts."""
    encode: Callable[[Asked[BodyT]], Awaitable[Sequence[Prompt]]]
    """Encodes the body's prompts, which may still be too long."""
    frame: Callable[[Asked[BodyT], CallFacts], Awaitable[Framing]]
    """Makes the framing, which turns completions into the endpoint's JSON."""
    scores_prompts: Callable[[Asked[BodyT]], bool] = lambda _asked: False
    """Whether the call asks for log-probabilities of the prompts."""
    tools: Callable[[BodyT, Service], ToolUse | None] = lambda _body, _service: None
    """The tools of the call, and what the model writes besides text."""

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
            tools=self.tools(body, service),
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
            reported=asked.use.reported,
            times=times_in_stream(body),
        )
        framing = await self.frame(asked, facts)
        requests = engine_requests(
            facts.call_id,
            prompts,
            asked.params,
            asked.use,
            n=asked.n,
            max_model_len=card.max_model_len,
            work=Work.SCORE if self.scores_prompts(asked) else Work.GENERATE,
            progress=facts.times.progress,
            reported_tokens=frozenset() if asked.tools is None else asked.tools.output.token_ids,
        )
        host.metrics.count(asked.use, len(requests))
        return await respond(call.request, host, service, requests, framing, stream=bool(body.stream))
