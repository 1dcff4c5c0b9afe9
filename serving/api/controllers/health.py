"""GET /health: whether the server takes requests now. GET /livez: whether the process runs."""

from __future__ import annotations

from litestar import Response
from msgspec import UNSET

from serving.api.endpoint import Call, Endpoint
from serving.api.errors import without_paths
from serving.api.schemas import Alive, Health
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


async def _livez(call: Call[None]) -> Response[Alive]:
    """200 also while loading and draining: a supervisor must not restart a server for either. 503 after a failure,
    when the process is about to end."""
    failed = call.host.status.state is EngineState.FAILED
    return Response(Alive(status="failed" if failed else "ok"), status_code=503 if failed else 200)


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
LIVEZ = Endpoint(
    path="/livez",
    method="GET",
    takes_head=True,
    operation_id="livez",
    summary="Whether the process runs, ready or not",
    response=Alive,
    other_responses={503: ("the engine failed, and the process is about to end", Alive)},
    public=True,
    quiet=True,
    handler=_livez,
)
