"""GET /metrics: metrics in the Prometheus text format."""

from __future__ import annotations

from litestar import Response

from serving.api.endpoint import Call, Endpoint, Text
from serving.api.service.metrics import CONTENT_TYPE


async def _metrics(call: Call[None]) -> Response[bytes]:
    return Response(call.host.metrics.text(), headers={"Content-Type": CONTENT_TYPE})


METRICS = Endpoint(
    path="/metrics",
    method="GET",
    operation_id="metrics",
    summary="Metrics for Prometheus",
    response=Text("metrics in the Prometheus text format"),
    quiet=True,
    link="metrics",
    handler=_metrics,
)
