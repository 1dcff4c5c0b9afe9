"""GET /props: properties of the server and the model. GET /slots: what runs now, without its texts."""

from __future__ import annotations

from litestar import Response

from mistral_jax.runtime.sampling.params import SAMPLERS, SamplingParams
from mistral_jax.tokenizer.base import Tokenizer
from serving.api.endpoint import Call, Endpoint, OneOf
from serving.api.errors import NotEnabledError, UnavailableError
from serving.api.responses.llama.settings import generation_settings
from serving.api.schemas import Modalities, NextToken, Props, Slot
from serving.api.service.lifecycle import ServiceHost
from serving.engine.messages import SlotStatus
from serving.version import version


async def _props(call: Call[None]) -> Props:
    host = call.host
    service = host.loaded_service
    model, card = service.models.default, service.card
    params = SamplingParams(**card.sampling_defaults, max_tokens=host.settings.max_tokens)
    template = None if service.chat is None else service.chat.template
    return Props(
        default_generation_settings=_slot(SlotStatus(id=0), params, host, n_ctx=card.max_model_len),
        total_slots=host.settings.max_seqs,
        model_alias=model.id,
        model_path=service.models.base.root or model.id,
        chat_template=template or "",
        bos_token=_token(service.tokenizer, service.tokenizer.bos_id),
        eos_token=_token(service.tokenizer, service.tokenizer.eos_id),
        n_ctx=card.max_model_len,
        n_vocab=card.vocab_size,
        modalities=Modalities(),
        endpoint_slots=host.settings.slots_endpoint,
        build_info=card.fingerprint or f"b{version()}",
    )


async def _slots(call: Call[None]) -> Response[list[Slot]]:
    host = call.host
    if not host.settings.slots_endpoint:
        raise NotEnabledError("this server does not show its slots; start it with --slots-endpoint")
    service = host.service
    slots = service.engine.slots()
    if call.request.query_params.get("fail_on_no_slot") == "1" and all(slot.is_processing for slot in slots):
        raise UnavailableError("no slot is free", code="no_free_slot")
    idle = SamplingParams(**service.card.sampling_defaults)
    shown = [_slot(slot, slot.params or idle, host, n_ctx=service.card.max_model_len) for slot in slots]
    return Response(shown, status_code=200)


def _slot(slot: SlotStatus, params: SamplingParams, host: ServiceHost, *, n_ctx: int) -> Slot:
    busy = slot.is_processing
    return Slot(
        id=slot.id,
        n_ctx=n_ctx,
        is_processing=busy,
        n_prompt_tokens=slot.prompt_tokens,
        n_prompt_tokens_processed=slot.processed,
        params=generation_settings(params, repeat_last_n=host.settings.repeat_last_n, samplers=SAMPLERS),
        next_token=NextToken(
            has_next_token=busy,
            n_remain=slot.max_tokens - slot.generated if busy else -1,
            n_decoded=slot.generated,
        ),
    )


def _token(tokenizer: Tokenizer, token: int | None) -> str:
    return "" if token is None else tokenizer.token_text(token)


PROPS = Endpoint(
    path="/props",
    method="GET",
    operation_id="props",
    summary="Properties of the server and the model, as llama.cpp shows them",
    response=Props,
    errors=(503,),
    link="props",
    handler=_props,
)
SLOTS = Endpoint(
    path="/slots",
    method="GET",
    operation_id="slots",
    summary="What runs now, without its texts, if --slots-endpoint allows it; as llama.cpp shows it",
    response=OneOf("one for each slot", (list[Slot],)),
    errors=(501, 503),
    quiet=True,
    handler=_slots,
)
