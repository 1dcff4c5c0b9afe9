"""GET /metrics."""

from __future__ import annotations

from litestar import Controller, Response, get
from litestar.di import NamedDependency

from serving.api.service.lifecycle import ServiceHost
from serving.api.service.metrics import CONTENT_TYPE


class MetricsController(Controller):
    @get("/metrics", operation_id="metrics")
    async def metrics(self, host: NamedDependency[ServiceHost]) -> Response[bytes]:
        """What the server does, in the text format of Prometheus."""
        return Response(host.metrics.text(), headers={"Content-Type": CONTENT_TYPE})
