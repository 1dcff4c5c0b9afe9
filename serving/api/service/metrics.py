"""What the server does, as Prometheus metrics.

All but the count of requests is read when somebody asks, so that nothing is done for metrics that nobody looks at. The
registry belongs to one server; there is none for the process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from serving.api.service.asked import AdapterUse
from serving.api.service.service import Service
from serving.engine.messages import EngineState, EngineStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one server.

    Args:
      status: of the engine.
      service: as soon as there is one.
      lost_lines: of the request log; None where there is no such log.
    """

    def __init__(
        self,
        status: Callable[[], EngineStatus],
        service: Callable[[], Service | None],
        lost_lines: Callable[[], int | None] = lambda: None,
    ) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "mistral_jax_requests",
            "Answers that were asked for, by the model that answers and the adapter (mixture: "
            "X-LoRA; weights: fixed by hand)",
            ["model", "adapter"],
            registry=self._registry,
        )
        self._registry.register(_Engine(status, service))
        self._registry.register(_Log(lost_lines))

    def count(self, use: AdapterUse, answers: int) -> None:
        """Count a request for so many answers."""
        self._requests.labels(use.model_id, use.label).inc(answers)

    def text(self) -> bytes:
        """All of them, in the text format."""
        return generate_latest(self._registry)


class _Engine(Collector):
    """What the engine tells when it is asked."""

    def __init__(self, status: Callable[[], EngineStatus], service: Callable[[], Service | None]) -> None:
        self._status, self._service = status, service

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        ready = status.state is EngineState.READY
        yield GaugeMetricFamily("mistral_jax_ready", "1 while requests are taken", value=float(ready))
        yield GaugeMetricFamily("mistral_jax_requests_running", "Answers in slots", value=status.running)
        yield GaugeMetricFamily("mistral_jax_requests_waiting", "Answers in the queue", value=status.waiting)
        yield GaugeMetricFamily("mistral_jax_slots", "Answers that can run at once", value=status.slots)
        yield CounterMetricFamily(
            "mistral_jax_generated_tokens", "Tokens that the model generated", value=status.generated_tokens
        )
        service = self._service()
        if service is None or not service.models.has_mixture:
            return
        shares = GaugeMetricFamily(
            "mistral_jax_adapter_share",
            "Mean weight that X-LoRA gave an adapter, over modules and over tokens of one decoding step in each of the "
            "last 60 seconds with X-LoRA; measured from the first question on, as long as questions keep coming",
            labels=["adapter"],
        )
        measured = service.engine.adapter_shares
        for adapter in service.models.experts:
            if adapter.number < len(measured):
                shares.add_metric([adapter.name], measured[adapter.number])
        yield shares


class _Log(Collector):
    """What became of the lines of `--log`."""

    def __init__(self, lost_lines: Callable[[], int | None]) -> None:
        self._lost_lines = lost_lines

    def collect(self) -> Iterable[Metric]:
        lost = self._lost_lines()
        if lost is not None:
            yield CounterMetricFamily(
                "mistral_jax_log_lines_lost", "Lines of --log that were dropped or could not be written", value=lost
            )
