"""GET /lora-adapters: the adapters by number. POST /lora-adapters, which in llama.cpp sets scales for all requests, is
refused: here each request has its own."""

from __future__ import annotations

from typing import NoReturn

from litestar import Response

from serving.api.endpoint import Call, Endpoint, OneOf
from serving.api.errors import NotEnabledError
from serving.api.schemas import NumberedLora


async def _list(call: Call[None]) -> Response[list[NumberedLora]]:
    models = call.host.loaded_service.models
    scales = dict(models.default.choice.weights)
    adapters = [
        NumberedLora(
            id=adapter.number,
            name=adapter.name,
            path=adapter.source or adapter.name,
            scale=scales.get(adapter.number, 0.0),
        )
        for adapter in models.adapters
    ]
    return Response(sorted(adapters, key=lambda adapter: adapter.id), status_code=200)


async def _set_scales(_call: Call[None]) -> NoReturn:
    raise NotEnabledError(
        "scales of adapters are not set for all requests; name an adapter in `model`, or send a mixture with each "
        "request: `lora: [{id, scale}]` or `adapters: {name: weight}`",
        code="not_supported",
    )


LORA_SCALES = Endpoint(
    path="/lora-adapters",
    method="GET",
    operation_id="listLoraScales",
    summary="List the adapters by number, as llama.cpp",
    response=OneOf("the adapters", (list[NumberedLora],)),
    errors=(503,),
    handler=_list,
)
SET_LORA_SCALES = Endpoint(
    path="/lora-adapters",
    method="POST",
    operation_id="setLoraScales",
    summary="Refused: scales are part of each request",
    response=OneOf("never sent", (list[NumberedLora],)),
    errors=(501,),
    handler=_set_scales,
)
