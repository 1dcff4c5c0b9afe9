"""What /metrics says of requests: right counts, consistent histograms, and the names that vLLM's dashboards read."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from mistral_jax.runtime.sampling.params import SamplingParams
from serving.api.service.histogram import Histogram
from serving.api.service.request_metrics import RequestMetrics
from serving.engine.messages import Event, Request, Times
from tests.serving.api.service.test_served_models import models
from tests.serving.fakes import FakeEngine, fake_service
from tests.serving.harness import CHAT, MESSAGES, TEXT, running

pytestmark = pytest.mark.anyio

LABELS = '{engine="0",model_name="acme/tiny-mistral"}'


async def scrape(client: Any) -> dict[str, float]:
    text = (await client.get("/metrics")).text
    list(text_string_to_metric_families(text))  # a parser of Prometheus reads all of it
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


async def test_finished_completions_are_counted_under_both_names() -> None:
    async with running(FakeEngine("Hello", delay=0.002)) as client:
        await client.post(CHAT, json={"messages": MESSAGES})
        await client.post(TEXT, json={"prompt": ["a", "bc"], "max_tokens": 3, "n": 2})
        found = await scrape(client)
    assert found['vllm:request_success_total{engine="0",finished_reason="stop",model_name="acme/tiny-mistral"}'] == 1
    assert found['vllm:request_success_total{engine="0",finished_reason="length",model_name="acme/tiny-mistral"}'] == 4
    assert found['mistral_jax_requests_finished_total{reason="length"}'] == 4
    prompt_tokens = 9 + 2 * (2 + 3)
    assert found[f"vllm:prompt_tokens_total{LABELS}"] == found["mistral_jax_prompt_tokens_total"] == prompt_tokens
    for name, sum_ in (("request_prompt_tokens", prompt_tokens), ("request_generation_tokens", 6 + 4 * 3)):
        assert found[f"vllm:{name}_count{LABELS}"] == 5
        assert found[f"vllm:{name}_sum{LABELS}"] == sum_


async def test_times_are_in_histograms_and_add_up() -> None:
    async with running(FakeEngine("Hello", delay=0.005)) as client:
        await client.post(CHAT, json={"messages": MESSAGES})
        found = await scrape(client)

    def total(name: str) -> float:
        assert found[f"vllm:{name}_count{LABELS}"] == 1
        return found[f"vllm:{name}_sum{LABELS}"]

    queue, prefill = total("request_queue_time_seconds"), total("request_prefill_time_seconds")
    decode, inference = total("request_decode_time_seconds"), total("request_inference_time_seconds")
    assert inference == pytest.approx(prefill + decode)
    assert total("e2e_request_latency_seconds") == pytest.approx(queue + inference)
    assert total("time_to_first_token_seconds") == pytest.approx(queue + prefill)
    assert total("request_time_per_output_token_seconds") == pytest.approx(decode / 5)
    assert found[f"vllm:inter_token_latency_seconds_count{LABELS}"] == 5
    assert found[f"vllm:inter_token_latency_seconds_sum{LABELS}"] == pytest.approx(decode)
    assert decode >= 0.02
    assert found["mistral_jax_time_to_first_token_seconds_count"] == 1


async def test_queue_and_slots_are_gauges_that_return_to_zero() -> None:
    gate = threading.Event()
    engine = FakeEngine("ok", slots=2, gate=gate)
    async with running(engine) as client:
        asking = [asyncio.create_task(client.post(CHAT, json={"messages": MESSAGES})) for _ in range(3)]
        while engine.live < 3:
            await asyncio.sleep(0.001)
        busy = await scrape(client)
        gate.set()
        await asyncio.gather(*asking)
        idle = await scrape(client)
    assert (busy[f"vllm:num_requests_running{LABELS}"], busy[f"vllm:num_requests_waiting{LABELS}"]) == (2, 1)
    used = busy[f"vllm:kv_cache_usage_perc{LABELS}"]
    assert used == busy[f"vllm:gpu_cache_usage_perc{LABELS}"] == 2 * 9 / (2 * 256)
    assert (idle[f"vllm:num_requests_running{LABELS}"], idle[f"vllm:num_requests_waiting{LABELS}"]) == (0, 0)
    assert idle[f"vllm:kv_cache_usage_perc{LABELS}"] == 0


async def test_cancelled_and_failed_requests_are_counted_as_such() -> None:
    engine = FakeEngine("x", gate=threading.Event())
    async with running(engine) as client:
        asking = asyncio.create_task(client.post(CHAT, json={"messages": MESSAGES}, headers={"X-Request-Id": "mine"}))
        while engine.live < 1:
            await asyncio.sleep(0.001)
        await client.post("/v1/requests/mine/cancel")
        assert (await asking).status_code == 499
        found = await scrape(client)
    assert found['mistral_jax_requests_finished_total{reason="abort"}'] == 1
    async with running(FakeEngine("long text", fail_after=2)) as client:
        await client.post(CHAT, json={"messages": MESSAGES, "n": 2})
        found = await scrape(client)
    reasons = re.compile(r'mistral_jax_requests_finished_total\{reason="(\w+)"\}')
    counts = {match[1]: value for name, value in found.items() if (match := reasons.fullmatch(name))}
    assert counts["error"] >= 1
    assert sum(counts.values()) == 2
    assert counts["stop"] == counts["length"] == 0


async def test_requests_that_are_refused_are_not_counted() -> None:
    async with running(FakeEngine("x", slots=1, queue_limit=0, gate=threading.Event())) as client:
        assert (await client.post(CHAT, json={"messages": MESSAGES, "n": 2})).status_code == 503
        found = await scrape(client)
    assert all(value == 0 for name, value in found.items() if name.startswith("mistral_jax_requests_finished"))


async def test_adapters_in_use_are_named() -> None:
    engine = FakeEngine("ok", slots=1, gate=threading.Event())
    async with running(service=fake_service(engine, models=models())) as client:
        bodies = [{"messages": MESSAGES, "model": name} for name in ("poet", "cook", "base")]
        asking = []
        for count, body in enumerate(bodies, 1):
            asking.append(asyncio.create_task(client.post(CHAT, json=body)))
            while engine.live < count:
                await asyncio.sleep(0.001)
        [info] = [name for name in await scrape(client) if name.startswith("vllm:lora_requests_info")]
        assert engine.gate is not None
        engine.gate.set()
        await asyncio.gather(*asking)
    # The registry counts users where the real engine tells it; the fake does not, so that none waits here.
    assert info == 'vllm:lora_requests_info{max_lora="3",running_lora_adapters="poet",waiting_lora_adapters=""}'


def test_a_histogram_counts_values_below_each_bound() -> None:
    histogram = Histogram((1, 2))
    for value, count in ((0.5, 1), (1, 1), (1.5, 3), (9, 1)):
        histogram.observe(value, count)
    assert (histogram._counts, histogram._sum) == ([2, 3, 1], 15.0)


def test_nothing_is_kept_of_requests_that_have_ended() -> None:
    metrics = RequestMetrics()
    request = Request(request_id="a", prompt=(1, 2), params=SamplingParams(seed=1, max_tokens=4))
    first = Event(request_id="a", completion_tokens=1, times=Times(0.0, 1.0, 2.0, 2.0))
    metrics.observe(request, first)
    metrics.observe(request, Event(request_id="a", completion_tokens=3, times=Times(0.0, 1.0, 2.0, 4.0)))
    assert metrics.inter_token._sum == 2.0
    metrics.observe(
        request, Event(request_id="a", completion_tokens=4, finish_reason="stop", times=Times(0.0, 1.0, 2.0, 5.0))
    )
    assert metrics._live == {}
    metrics.observe(request, first)
    metrics.abandoned(request)
    assert metrics._live == {}
    assert metrics.finished == {"stop": 1, "abort": 1}
