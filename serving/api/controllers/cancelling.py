"""POST /v1/requests/{id}/cancel: ends a request that is waiting or running."""

from __future__ import annotations

from serving.api.endpoint import Call, Endpoint
from serving.api.errors import NotFoundError
from serving.api.schemas import CancelledRequest
from serving.api.service.callers import CALLER


async def _cancel(call: Call[None]) -> CancelledRequest:
    """Requests can be cancelled with the key that they were made with."""
    id = call.request.path_params["id"]
    cancelled = call.host.live_calls.cancel(id, caller=CALLER.get())
    if not cancelled:
        raise NotFoundError(
            f"no request with the id {id[:128]!r} is waiting or running; expected the `id` of a response "
            "(chatcmpl-...), or an X-Request-Id",
            code="request_not_found",
        )
    return CancelledRequest(id=id, cancelled=cancelled)


CANCEL_REQUEST = Endpoint(
    path="/v1/requests/{id:str}/cancel",
    method="POST",
    operation_id="cancelRequest",
    summary="Cancel a request by the id of its response, or by its X-Request-Id",
    response=CancelledRequest,
    errors=(404,),
    handler=_cancel,
)
