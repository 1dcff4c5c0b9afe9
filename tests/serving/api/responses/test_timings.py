"""What responses tell of time: consistent with the tokens, of the whole and in streams, and how far a prompt is."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from serving.api.responses.timings import TimingsReport
from serving.api.schemas import Timings
from serving.api.service.asked import TimesInStream
from serving.engine.messages import Event, Times
from tests.serving.fakes import FakeEngine
from tests.serving.harness import CHAT, MESSAGES, TEXT, events_of, running

pytestmark = pytest.mark.anyio

BODIES = [(CHAT, {"messages": MESSAGES}), (TEXT, {"prompt": "Once"})]


async def ask(path: str, body: dict[str, Any], engine: FakeEngine | None = None) -> Any:
    async with running(engine or FakeEngine("Hello", delay=0.002)) as client:
        response = await client.post(path, json=body)
    assert response.status_code == 200, response.text
    return events_of(response.text) if body.get("stream") else response.json()


def check(timings: dict[str, Any], *, prompt: int, predicted: int) -> None:
    assert (timings["prompt_n"], timings["predicted_n"], timings["cache_n"]) == (prompt, predicted, 0)
    assert all(isinstance(value, int | float) and math.isfinite(value) for value in timings.values())
    assert timings["queue_ms"] >= 0
    assert timings["prompt_ms"] > 0
    assert timings["prompt_per_token_ms"] == pytest.approx(timings["prompt_ms"] / prompt, rel=0.01, abs=0.001)
    if timings["predicted_ms"]:
        assert timings["predicted_per_second"] == pytest.approx(1000 * predicted / timings["predicted_ms"], rel=0.01)


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_a_response_has_its_times(path: str, body: dict[str, Any]) -> None:
    whole = await ask(path, body)
    usage = whole["usage"]
    check(whole["timings"], prompt=usage["prompt_tokens"], predicted=usage["completion_tokens"])
    assert whole["timings"]["predicted_ms"] >= 2 * (usage["completion_tokens"] - 1)


@pytest.mark.parametrize(("path", "body"), BODIES)
@pytest.mark.parametrize("include_usage", [True, False])
async def test_the_last_chunk_of_a_stream_has_them(path: str, body: dict[str, Any], include_usage: bool) -> None:
    body = body | {"stream": True, "n": 2, "stream_options": {"include_usage": include_usage}}
    chunks = await ask(path, body)
    assert [index for index, chunk in enumerate(chunks) if "timings" in chunk] == [len(chunks) - 1]
    prompt = 9 if path == CHAT else 5
    check(chunks[-1]["timings"], prompt=2 * prompt, predicted=12)


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_times_in_each_chunk_are_those_of_its_choice_so_far(path: str, body: dict[str, Any]) -> None:
    chunks = await ask(path, body | {"stream": True, "timings_per_token": True})
    told = [chunk["timings"] for chunk in chunks if "timings" in chunk]
    assert [timings["predicted_n"] for timings in told] == [1, 2, 3, 4, 5, 6]
    assert all(earlier["predicted_ms"] <= later["predicted_ms"] for earlier, later in itertools.pairwise(told))
    without = [chunk for chunk in chunks if "timings" not in chunk]
    assert len(without) == (1 if path == CHAT else 0)  # the chunk with the role, before anything has happened


@pytest.mark.parametrize("path", [CHAT, TEXT])
async def test_progress_comes_before_the_first_token_and_ends_with_the_whole_prompt(path: str) -> None:
    text = "x" * 60
    body = {"messages": [{"role": "user", "content": text}]} if path == CHAT else {"prompt": text}
    chunks = await ask(path, body | {"stream": True, "return_progress": True})
    total = 67 if path == CHAT else 61
    progress = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert [each["processed"] for each in progress] == [
        16,
        32,
        48,
        *((64,) if path == CHAT else (60,)),
        *((66, 67) if path == CHAT else (61,)),
    ]
    assert all((each["total"], each["cache"]) == (total, 0) for each in progress)
    assert all(each["time_ms"] >= 0 for each in progress)
    first = next(index for index, chunk in enumerate(chunks) if "H" in str(chunk["choices"]))
    assert max(index for index, chunk in enumerate(chunks) if "prompt_progress" in chunk) < first
    plain = await ask(path, body | {"stream": True})
    assert not any("prompt_progress" in chunk for chunk in plain)


async def test_each_choice_tells_its_own_progress() -> None:
    body = {"prompt": ["x" * 20, "y"], "stream": True, "return_progress": True}
    chunks = await ask(TEXT, body)
    told = [
        (chunk["choices"][0]["index"], chunk["prompt_progress"]["processed"], chunk["prompt_progress"]["total"])
        for chunk in chunks
        if "prompt_progress" in chunk
    ]
    assert [each[1:] for each in told if each[0] == 0] == [(16, 21), (20, 21), (21, 21)]
    assert [each[1:] for each in told if each[0] == 1] == [(1, 2), (2, 2)]


async def test_a_completion_without_tokens_has_finite_times() -> None:
    whole = await ask(TEXT, {"prompt": "abc", "max_tokens": 0})
    check(whole["timings"], prompt=4, predicted=0)
    assert whole["timings"]["predicted_per_second"] == 0


@pytest.mark.parametrize(("path", "body"), BODIES)
async def test_without_a_stream_the_fields_of_streams_change_nothing(path: str, body: dict[str, Any]) -> None:
    engine = FakeEngine("Hello")
    whole = await ask(path, body | {"timings_per_token": True, "return_progress": True}, engine)
    assert "prompt_progress" not in whole
    assert engine.submitted[0].progress is False


def test_phases_of_several_choices_last_from_the_first_to_the_last() -> None:
    report = TimingsReport([10, 30], TimesInStream())
    report.take(0, Event(request_id="a", completion_tokens=4, times=Times(0.0, 1.0, 2.0, 5.0), finish_reason="stop"))
    report.take(1, Event(request_id="b", completion_tokens=6, times=Times(0.5, 1.5, 3.0, 7.0)))
    assert not report.finished
    report.take(1, Event(request_id="b", completion_tokens=6, finish_reason="stop"))
    assert report.finished
    assert report.whole() == Timings(
        queue_ms=1000.0,
        prompt_n=40,
        prompt_ms=2000.0,
        prompt_per_token_ms=50.0,
        prompt_per_second=20.0,
        predicted_n=10,
        predicted_ms=5000.0,
        predicted_per_token_ms=500.0,
        predicted_per_second=2.0,
    )
