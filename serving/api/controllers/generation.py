"""The handler shared by the endpoints that generate text: from a body to completions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from litestar import Response
from litestar.types import Scope

from mistral_jax.runtime.sampling.params import SamplingParams
from serving.api.endpoint import Call
from serving.api.requests.adapter_request import adapter_use
from serving.api.requests.constraint import constraint_of
from serving.api.requests.output_format import output_format
from serving.api.requests.prompts import fit, truncation_of
from serving.api.requests.sampling_request import (
    OwnFields,
    cache_salt_of,
    choices_of,
    engine_requests,
    priority_of,
    reported,
    sampling_params,
    times_in_stream,
    usage_in_stream,
    with_rules,
)
from serving.api.responses.framing import CallFacts, Framing, new_id
from serving.api.responses.respond import respond
from serving.api.responses.scores.prompt_scores import check_scores
from serving.api.schemas import SamplingFields
from serving.api.service.asked import AdapterUse, Prompt, Reported, ToolUse, UsageInStream
from serving.api.service.lifecycle import ServiceHost
from serving.api.service.service import Service

GENERATION_ERRORS = (404, 499, 503, 504)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked[BodyT: SamplingFields]:
    """The parsed contents of one call, before its prompts are encoded."""

    body: BodyT
    host: ServiceHost
    service: Service
    scope: Scope
    use: AdapterUse
    n: int
    """Completions of each prompt that are returned."""
    candidates: int
    """Completions of each prompt that are generated; at least `n`."""
    usage: UsageInStream
    params: SamplingParams
    reported: Reported
    truncates: bool
    """Whether prompts that are too long will be truncated."""
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
    candidates: Callable[[BodyT, int, int], int] = lambda _body, n, _most: n
    """From a body, the number of completions to return, and the most that are possible: the number to generate."""
    echoes_logprobs: Callable[[BodyT], bool] = lambda _body: False
    """Whether each choice begins with the log-probabilities of its prompt."""
    tools: Callable[[BodyT, Service], ToolUse | None] = lambda _body, _service: None
    """The tools of the call, and what the model writes besides text."""

    async def __call__(self, call: Call[BodyT]) -> Response[Any]:
        body, host = call.body, call.host
        service, settings = host.service, host.settings
        card = service.card
        n = choices_of(body, most=settings.max_seqs)
        params = sampling_params(body, card, self.own_fields, default_max_tokens=settings.max_tokens)
        truncates, keep = truncation_of(body, card, truncate=settings.truncate_sequence)
        asked = Asked(
            body=body,
            host=host,
            service=service,
            scope=call.request.scope,
            use=adapter_use(body, service.models, card),
            n=n,
            candidates=self.candidates(body, n, settings.max_seqs),
            usage=usage_in_stream(body),
            params=await with_rules(params, service.tokenizer, card, host.encoding),
            reported=reported(body, params, echoes_logprobs=self.echoes_logprobs(body)),
            truncates=truncates or keep is not None,
            tools=self.tools(body, service),
        )
        prompts = [
            fit(
                prompt,
                card,
                max_tokens=params.max_tokens,
                truncate=truncates,
                bos_id=service.tokenizer.bos_id,
                param=self.prompt_field,
                keep=keep,
            )
            for prompt in await self.encode(asked)
        ]
        check_scores(prompts, copies=asked.candidates, reported=asked.reported)
        constraint = await constraint_of(
            service,
            output_format(body),
            asked.tools,
            in_reasoning=any(prompt.in_reasoning for prompt in prompts),
            ignore_eos=asked.params.ignore_eos,
            limiter=host.compiling,
        )
        facts = CallFacts(
            call_id=new_id(self.id_prefix),
            card=card,
            model_id=asked.use.model_id,
            prompts=prompts,
            n=asked.candidates,
            usage=asked.usage,
            logprobs=params.logprobs,
            tokens=asked.reported,
            reported=asked.use.reported,
            times=times_in_stream(body),
        )
        framing = await self.frame(asked, facts)
        requests = engine_requests(
            facts.call_id,
            prompts,
            # The best are those with the largest mean log-probability.
            replace(asked.params, logprobs=params.logprobs or 0) if asked.candidates > n else asked.params,
            asked.use,
            n=asked.candidates,
            max_model_len=card.max_model_len,
            reported=asked.reported,
            priority=priority_of(body),
            constraint=constraint,
            progress=facts.times.progress,
            reported_tokens=frozenset() if asked.tools is None else asked.tools.output.token_ids,
            uses_cache=body.cache_prompt is not False,
            cache_salt=cache_salt_of(body),
        )
        host.metrics.count(asked.use, len(requests))
        return await respond(call.request, host, service, requests, framing, stream=bool(body.stream))
