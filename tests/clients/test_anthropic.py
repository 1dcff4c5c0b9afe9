"""The anthropic package: messages, streams, tools, and the errors that it knows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.clients.asked import PARAMETERS, QUESTION, TOO_LONG, WeatherArguments
from tests.clients.conftest import KEY
from tests.integration.conftest import ServerProcess

pytestmark = pytest.mark.slow(by="file")

anthropic = pytest.importorskip("anthropic")

TOOL: Any = {"name": "get_weather", "description": "The weather of a city.", "input_schema": PARAMETERS}
ASKED: Any = {"model": "tiny", "max_tokens": 30, "messages": QUESTION}
GREEDY = {"temperature": 0}
"""The package has no argument for it, the API has a field."""


@pytest.fixture(scope="module")
def client(server: ServerProcess, require: Callable[[str], None]) -> Iterator[Any]:
    require("/v1/messages")
    with anthropic.Anthropic(base_url=server.url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_whole_and_streamed(client: Any) -> None:
    whole = client.messages.create(**ASKED, system="Be brief.", extra_body=GREEDY)
    (block,) = whole.content
    assert block.text
    assert whole.stop_reason in ("end_turn", "max_tokens")
    assert whole._request_id
    with client.messages.stream(**ASKED, system="Be brief.", extra_body=GREEDY) as stream:
        assert "".join(stream.text_stream) == block.text
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    counted = client.messages.count_tokens(model="tiny", messages=QUESTION, system="Be brief.")
    for usage in (whole.usage, final.usage):
        assert usage.input_tokens + usage.cache_read_input_tokens == counted.input_tokens
    assert final.usage.input_tokens == 1


def test_stop_sequences(client: Any) -> None:
    whole = client.messages.create(**ASKED, extra_body=GREEDY).content[0].text
    stop = whole[len(whole) // 2]
    stopped = client.messages.create(**ASKED, extra_body=GREEDY, stop_sequences=[stop])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", stop)
    assert "".join(block.text for block in stopped.content) == whole.split(stop)[0]


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
def test_a_tool_is_used_and_its_result_answered(client: Any, choice: Any) -> None:
    asked = {**ASKED, "max_tokens": 100, "tools": [TOOL]}
    first = client.messages.create(**asked, tool_choice={**choice, "disable_parallel_tool_use": True})
    assert first.stop_reason == "tool_use"
    (use,) = first.content
    assert use.name == "get_weather"
    WeatherArguments.model_validate(use.input)
    result = {"type": "tool_result", "tool_use_id": use.id, "content": "Rain."}
    turns = [{"role": "assistant", "content": first.content}, {"role": "user", "content": [result]}]
    final = client.messages.create(**{**asked, "messages": [*QUESTION, *turns]}, tool_choice={"type": "none"})
    assert [block.type for block in final.content] == ["text"]


def test_tool_use_streamed(client: Any) -> None:
    asked = {**ASKED, "max_tokens": 400, "tools": [TOOL], "tool_choice": {"type": "any"}}
    with client.messages.stream(**asked) as stream:
        written = "".join(event.partial_json for event in stream if event.type == "input_json")
        final = stream.get_final_message()
    assert final.stop_reason == "tool_use"
    assert written.startswith("{")
    assert final.content
    for use in final.content:
        WeatherArguments.model_validate(use.input)


def test_async(server: ServerProcess, client: Any) -> None:
    whole = client.messages.create(**ASKED, extra_body=GREEDY)

    async def run() -> str:
        async with (
            anthropic.AsyncAnthropic(base_url=server.url, api_key=KEY) as client,
            client.messages.stream(**ASKED, extra_body=GREEDY) as stream,
        ):
            return await stream.get_final_text()

    assert asyncio.run(run()) == whole.content[0].text


def test_errors(client: Any, server: ServerProcess) -> None:
    with pytest.raises(anthropic.BadRequestError, match="maximum context length is 2048 tokens") as long:
        client.messages.create(**{**ASKED, "messages": TOO_LONG})
    assert long.value.type == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(**{**ASKED, "model": "claude-opus-4-1"})
    assert missing.value.type == "not_found_error"
    with (
        anthropic.Anthropic(base_url=server.url, api_key="wrong", max_retries=0) as other,
        pytest.raises(anthropic.AuthenticationError) as unknown,
    ):
        other.messages.create(**ASKED)
    assert unknown.value.type == "authentication_error"


def test_a_full_queue_is_refused_and_retried(
    client: Any, full_queue: Callable[[], AbstractContextManager[Callable[[], None]]]
) -> None:
    with full_queue() as end:
        with pytest.raises(anthropic.InternalServerError) as busy:
            client.messages.create(**ASKED)
        assert busy.value.status_code == 503
        timer = threading.Timer(0.5, end)
        timer.start()
        message = client.with_options(max_retries=5).messages.create(**ASKED)
        timer.join()
    assert message.content
