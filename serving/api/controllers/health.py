"""GET /health: whether requests are taken now. GET /: what this is. Both are public."""

from __future__ import annotations

from litestar import Controller, HttpMethod, Response, route
from litestar.di import NamedDependency
from msgspec import UNSET

from serving.api.errors import without_paths
from serving.api.schemas import Health, Index
from serving.api.service.lifecycle import ServiceHost, unavailable
from serving.engine.messages import EngineState
from serving.version import version

_METHODS = [HttpMethod.GET, HttpMethod.HEAD]


class HealthController(Controller):
    @route("/health", http_method=_METHODS, status_code=200, operation_id="health")
    async def health(self, host: NamedDependency[ServiceHost]) -> Response[Health]:
        """200 when requests are taken; 503 with the state while loading, warming up, draining, and after a failure."""
        status = host.status
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

    @route("/", http_method=_METHODS, status_code=200, operation_id="index")
    async def index(self) -> Index:
        """What this server is, and where things are."""
        links = {
            "chat": "/v1/chat/completions",
            "completions": "/v1/completions",
            "models": "/v1/models",
            "adapters": "/v1/lora_adapters",
            "health": "/health",
            "metrics": "/metrics",
            "docs": "/docs",
            "openapi": "/openapi.json",
        }
        return Index(name="mistral-jax", version=version(), links=links)
