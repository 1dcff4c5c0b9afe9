"""GET /health: whether the server takes requests now."""

from __future__ import annotations

from litestar import Response
from msgspec import UNSET

from serving.api.endpoint import Call, Endpoint
from serving.api.errors import without_paths
from serving.api.schemas import Health
from serving.api.service.lifecycle import unavailable
from serving.engine.messages import EngineState


async def _health(call: Call[None]) -> Response[Health]:
    """200 when ready; 503 with the state while loading, warming up or draining, and after a failure."""
    status = call.host.status
    if status.state is EngineState.READY:
        return Response(Health(status="ok", running=status.running, waiting=status.waiting), status_code=200)
    refusal = unavailable(status)
    body = Health(
        status=str(status.state),
        detail=without_paths(status.detail)[:500] or UNSET,
        progress=UNSET if status.progress is None else status.progress,
        error=refusal.body().error,
    )
    return Response(body, status_code=503, headers=refusal.headers)


HEALTH = Endpoint(
    path="/health",
    method="GET",
    takes_head=True,
    operation_id="health",
    summary="Whether the server takes requests now",
    response=Health,
    other_responses={503: ("loading, warming up, stopping, or failed", Health)},
    public=True,
    quiet=True,
    link="health",
    handler=_health,
)
