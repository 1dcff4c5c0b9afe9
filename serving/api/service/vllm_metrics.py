"""The metrics in vLLM's names and labels, for its dashboards and for routers that read queue, running and cache gauges;
those that count requests in names of our own, too."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.api.service.histogram import Histogram
from serving.api.service.request_metrics import REASONS, RequestMetrics
from serving.api.service.service import Service
from serving.engine.messages import EngineStatus, SlotStatus

_LABELS = ("model_name", "engine")
_ENGINE = "0"


class RequestCollector(Collector):
    """The metrics of requests.

    Args:
      status, service: see `serving.api.service.metrics.Metrics`.
      room_for_adapters: adapters that can be loaded in addition to those at start.
    """

    def __init__(
        self,
        requests: RequestMetrics,
        status: Callable[[], EngineStatus],
        service: Callable[[], Service | None],
        *,
        room_for_adapters: int,
    ) -> None:
        self._requests = requests
        self._status, self._service = status, service
        self._room_for_adapters = room_for_adapters

    def collect(self) -> Iterable[Metric]:
        service = self._service()
        name = "" if service is None else service.models.default.id
        for own, theirs, text, histogram in self._histograms():
            yield _histogram(own, text, histogram)
            yield _histogram(theirs, text, histogram, name)
        requests = self._requests
        yield CounterMetricFamily(
            "mistral_jax_prompt_tokens", "Tokens of prompts, those in the cache included", requests.prompt_tokens
        )
        finished = CounterMetricFamily("mistral_jax_requests_finished", "Completions that ended", labels=["reason"])
        for reason in REASONS.values():
            finished.add_metric([reason], requests.finished[reason])
        yield finished
        yield from self._of_vllm(name)
        if service is not None:
            yield from self._of_cache(service, name)

    def _histograms(self) -> Iterable[tuple[str, str, str, Histogram]]:
        """Our name, vLLM's name, a text, and the values."""
        requests = self._requests
        for own, theirs, text, histogram in (
            ("time_to_first_token_seconds", "", "From the queue to the first token", requests.time_to_first_token),
            ("inter_token_latency_seconds", "", "Between two tokens of a completion", requests.inter_token),
            (
                "time_per_output_token_seconds",
                "request_time_per_output_token_seconds",
                "Mean time between the tokens of a completion",
                requests.per_output_token,
            ),
            ("request_seconds", "e2e_request_latency_seconds", "From the queue to the end", requests.end_to_end),
            ("queue_seconds", "request_queue_time_seconds", "From the queue to a slot", requests.queue),
            ("prefill_seconds", "request_prefill_time_seconds", "From the slot to the first token", requests.prefill),
            ("decode_seconds", "request_decode_time_seconds", "From the first token to the last", requests.decode),
            (
                "inference_seconds",
                "request_inference_time_seconds",
                "From the slot to the last token",
                requests.inference,
            ),
            ("request_prompt_tokens", "", "Tokens of a prompt", requests.prompt_lengths),
            (
                "request_completion_tokens",
                "request_generation_tokens",
                "Tokens of a completion",
                requests.completion_lengths,
            ),
        ):
            yield f"mistral_jax_{own}", f"vllm:{theirs or own}", text, histogram

    def _of_vllm(self, name: str) -> Iterable[Metric]:
        status, requests = self._status(), self._requests
        yield _gauge("num_requests_running", "Completions in slots", status.running, name)
        yield _gauge("num_requests_waiting", "Completions in the queue", status.waiting, name)
        yield _counter("prompt_tokens", "Tokens of prompts, those in the cache included", requests.prompt_tokens, name)
        yield _counter("generation_tokens", "Tokens generated", status.generated_tokens, name)
        for kind, text, count in (
            ("spec_decode_num_draft_tokens", "Tokens that were looked up and proposed, at most", status.proposed),
            ("spec_decode_num_accepted_tokens", "Those of them that came next", status.accepted),
            ("num_preemptions", "Completions that made room for others, and went on later", status.put_back),
            ("prefix_cache_queries", "Prompt tokens that might have been in the cache", status.cache_queries),
            ("prefix_cache_hits", "Prompt tokens that were in the cache, and not run again", status.cache_hits),
        ):
            yield _counter(kind, text, count, name)
        success = CounterMetricFamily(
            "vllm:request_success", "Completions that ended", labels=[*_LABELS, "finished_reason"]
        )
        for reason in REASONS.values():
            success.add_metric([name, _ENGINE, reason], requests.finished[reason])
        yield success

    def _of_cache(self, service: Service, name: str) -> Iterable[Metric]:
        slots, used = service.engine.slots(), self._status().cache_usage
        yield _gauge("kv_cache_usage_perc", "Fraction of the KV cache that running completions have", used, name)
        yield _gauge("gpu_cache_usage_perc", "The same, under its former name", used, name)
        if service.models.adapters or self._room_for_adapters:
            yield self._adapters(service, slots)

    def _adapters(self, service: Service, slots: Iterable[SlotStatus]) -> Metric:
        """The adapters that requests use now, in labels; the value is the time, as readers take the latest."""
        named = {adapter.key: adapter.name for adapter in service.models.adapters}
        running = {named.get(key, key) for slot in slots for key in slot.adapters}
        used = {named.get(key, key) for key in service.models.registry.users()}
        at_start = sum(not adapter.removable for adapter in service.models.adapters)
        family = GaugeMetricFamily(
            "vllm:lora_requests_info",
            "Adapters that requests use now",
            labels=["max_lora", "running_lora_adapters", "waiting_lora_adapters"],
        )
        most = str(at_start + self._room_for_adapters)
        family.add_metric([most, ",".join(sorted(running)), ",".join(sorted(used - running))], time.time())
        return family


def _gauge(name: str, text: str, value: float, model: str) -> Metric:
    family = GaugeMetricFamily(f"vllm:{name}", text, labels=_LABELS)
    family.add_metric([model, _ENGINE], value)
    return family


def _counter(name: str, text: str, value: float, model: str) -> Metric:
    family = CounterMetricFamily(f"vllm:{name}", text, labels=_LABELS)
    family.add_metric([model, _ENGINE], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram, model: str | None = None) -> Metric:
    family = HistogramMetricFamily(name, text, labels=() if model is None else _LABELS)
    histogram.add_to(family, () if model is None else (model, _ENGINE))
    return family
