"""Prometheus metrics.

All but those of requests are read at scrape time, so that unused metrics cost nothing. Each server has its own
registry; the process-wide one is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from serving.api.service.asked import AdapterUse
from serving.api.service.request_metrics import RequestMetrics
from serving.api.service.service import Service
from serving.api.service.vllm_metrics import RequestCollector
from serving.engine.messages import EngineState, EngineStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """The metrics of one server.

    Args:
      status: returns the engine's status.
      service: returns the service, or None before it is built.
      lost_lines: returns the lines lost by the request log, or None without `--log`.
      room_for_adapters: adapters that can be loaded in addition to those at start.
    """

    def __init__(
        self,
        status: Callable[[], EngineStatus],
        service: Callable[[], Service | None],
        lost_lines: Callable[[], int | None] = lambda: None,
        *,
        room_for_adapters: int = 0,
    ) -> None:
        self.requests = RequestMetrics()
        self._registry = CollectorRegistry(auto_describe=False)
        self._requests = Counter(
            "mistral_jax_requests",
            "Completions requested, by model and adapter (mixture: X-LoRA; weights: fixed by the request)",
            ["model", "adapter"],
            registry=self._registry,
        )
        self._registry.register(_Engine(status, service))
        self._registry.register(RequestCollector(self.requests, status, service, room_for_adapters=room_for_adapters))
        self._registry.register(_Log(lost_lines))

    def count(self, use: AdapterUse, completions: int) -> None:
        """Count a request for this many completions."""
        self._requests.labels(use.model_id, use.label).inc(completions)

    def text(self) -> bytes:
        """All metrics, in the Prometheus text format."""
        return generate_latest(self._registry)


class _Engine(Collector):
    """Metrics read from the engine at scrape time."""

    def __init__(self, status: Callable[[], EngineStatus], service: Callable[[], Service | None]) -> None:
        self._status, self._service = status, service

    def collect(self) -> Iterable[Metric]:
        status = self._status()
        ready = status.state is EngineState.READY
        yield GaugeMetricFamily("mistral_jax_ready", "1 while the server takes requests", value=float(ready))
        yield GaugeMetricFamily("mistral_jax_requests_running", "Completions in slots", value=status.running)
        yield GaugeMetricFamily("mistral_jax_requests_waiting", "Completions in the queue", value=status.waiting)
        yield GaugeMetricFamily("mistral_jax_slots", "Completions that can run at once", value=status.slots)
        yield CounterMetricFamily("mistral_jax_generated_tokens", "Tokens generated", value=status.generated_tokens)
        yield GaugeMetricFamily(
            "mistral_jax_cache_usage", "Fraction of the KV cache that running completions have", status.cache_usage
        )
        yield CounterMetricFamily(
            "mistral_jax_cache_queries", "Prompt tokens that might have been in the cache", status.cache_queries
        )
        yield CounterMetricFamily(
            "mistral_jax_cache_hits", "Prompt tokens that were in the cache, and not run again", status.cache_hits
        )
        yield CounterMetricFamily(
            "mistral_jax_proposed_tokens", "Tokens that were looked up and proposed, at most", status.proposed
        )
        yield CounterMetricFamily("mistral_jax_accepted_tokens", "Those of them that came next", status.accepted)
        yield CounterMetricFamily(
            "mistral_jax_requests_put_back", "Completions that made room for others, and went on later", status.put_back
        )
        service = self._service()
        if service is None or not service.models.has_mixture:
            return
        shares = GaugeMetricFamily(
            "mistral_jax_adapter_share",
            "Mean X-LoRA weight of an adapter over modules and tokens, sampled from one decode step in each of the "
            "last 60 seconds with X-LoRA; sampled from the first scrape on, while scrapes continue",
            labels=["adapter"],
        )
        measured = service.engine.adapter_shares
        for adapter in service.models.experts:
            if adapter.number < len(measured):
                shares.add_metric([adapter.name], measured[adapter.number])
        yield shares


class _Log(Collector):
    """Metrics of the file of `--log`."""

    def __init__(self, lost_lines: Callable[[], int | None]) -> None:
        self._lost_lines = lost_lines

    def collect(self) -> Iterable[Metric]:
        lost = self._lost_lines()
        if lost is not None:
            yield CounterMetricFamily(
                "mistral_jax_log_lines_lost", "Lines of --log that were dropped or could not be written", value=lost
            )
