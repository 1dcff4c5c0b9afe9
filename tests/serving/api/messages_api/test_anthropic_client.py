"""The anthropic package, unchanged, against the server on a real port; where it is installed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from mistral_jax.chat.output.formats import OutputFormat, tool_format
from tests.serving.api.controllers.test_tools import THINK
from tests.serving.api.messages_api.test_messages import TOOLS
from tests.serving.fakes import FakeChat, FakeEngine, fake_service
from tests.serving.harness import MESSAGES, listening

anthropic = pytest.importorskip("anthropic")

TEXT = "Hello, wörld! 🙂"
USES = (
    "<think>\nWhere?\n</think>\n\nTwo calls.\n"
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>\n'
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
)
ASKED: Any = {"model": "default", "max_tokens": 240, "messages": MESSAGES}


@pytest.fixture
def client() -> Iterator[Any]:
    with (
        listening(FakeEngine(TEXT), api_keys=("key",)) as server,
        anthropic.Anthropic(base_url=server.url, api_key="key", max_retries=0) as client,
    ):
        yield client


@pytest.fixture
def with_tools() -> Iterator[Any]:
    chat = FakeChat(OutputFormat(tools=tool_format("hermes", {}), reasoning=THINK))
    with (
        listening(service=fake_service(FakeEngine(USES), chat=chat)) as server,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        yield client


def test_create(client: Any) -> None:
    message = client.messages.create(**ASKED, system="Be brief.", stop_sequences=["zzz"])
    assert [block.text for block in message.content] == [TEXT]
    assert (message.stop_reason, message.usage.output_tokens) == ("end_turn", 20)
    assert message._request_id
    counted = client.messages.count_tokens(model="default", messages=MESSAGES)
    assert counted.input_tokens == 9


def test_stream(client: Any) -> None:
    with client.messages.stream(**ASKED) as stream:
        assert "".join(stream.text_stream) == TEXT
        final = stream.get_final_message()
    assert (final.content[0].text, final.stop_reason, final.usage.output_tokens) == (TEXT, "end_turn", 20)
    events = [event.type for event in client.messages.create(**ASKED, stream=True)]
    assert (events[0], events[-1]) == ("message_start", "message_stop")


def test_tools(with_tools: Any) -> None:
    message = with_tools.messages.create(**ASKED, tools=TOOLS)
    assert [block.type for block in message.content] == ["thinking", "text", "tool_use", "tool_use"]
    assert message.stop_reason == "tool_use"
    results = [
        {"type": "tool_result", "tool_use_id": block.id, "content": "20"}
        for block in message.content
        if block.type == "tool_use"
    ]
    history = [*MESSAGES, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
    again = with_tools.messages.create(**{**ASKED, "messages": history}, tools=TOOLS, tool_choice={"type": "any"})
    assert again.content
    with with_tools.messages.stream(**ASKED, tools=TOOLS) as stream:
        final = stream.get_final_message()
    assert [block.input for block in final.content if block.type == "tool_use"] == [{"city": "Paris"}, {"city": "Rome"}]
    assert final.content[0].thinking == "Where?"


def test_async() -> None:
    async def ask(url: str) -> str:
        client = anthropic.AsyncAnthropic(base_url=url, api_key="none")
        async with client, client.messages.stream(**ASKED) as stream:
            return (await stream.get_final_message()).content[0].text

    with listening(FakeEngine(TEXT)) as server:
        assert asyncio.run(ask(server.url)) == TEXT


def test_errors(client: Any) -> None:
    with pytest.raises(anthropic.BadRequestError, match="max_tokens is 0") as bad:
        client.messages.create(**{**ASKED, "max_tokens": 0})
    assert bad.value.body["error"]["type"] == "invalid_request_error"
    with pytest.raises(anthropic.NotFoundError):
        client.messages.create(**{**ASKED, "model": "other"})
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(**ASKED)


def test_a_failing_stream_raises() -> None:
    with (
        listening(FakeEngine(TEXT, fail_after=3)) as server,
        anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client,
    ):
        with pytest.raises(anthropic.APIStatusError, match="NaN"), client.messages.stream(**ASKED) as stream:
            stream.until_done()
        with pytest.raises(anthropic.InternalServerError):
            client.messages.create(**ASKED)
