"""`client.responses` of the openai package, and what it shares with chat."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest

from tests.clients.asked import PARAMETERS, Trip, WeatherArguments
from tests.clients.conftest import KEY

TOOL: Any = {"type": "function", "name": "get_weather", "parameters": PARAMETERS, "strict": True}
QUESTION = "What will the weather be in Paris?"


@pytest.fixture(scope="module")
def client(url: str, require: Callable[[str], None]) -> Iterator[openai.OpenAI]:
    require("/v1/responses")
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "input": QUESTION, "instructions": "Be brief.", "temperature": 0}
    whole = client.responses.create(**asked, max_output_tokens=30)
    assert whole.output_text
    assert whole.usage is not None
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    events = list(client.responses.create(**asked, max_output_tokens=30, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == whole.output_text
    last = events[-1]
    assert last.type == ("response.completed" if whole.status == "completed" else "response.incomplete")
    assert last.response.output_text == whole.output_text
    # Now the prompt is in the cache.
    usage = last.response.usage
    assert usage.total_tokens == whole.usage.total_tokens
    assert usage.input_tokens_details.cached_tokens == usage.input_tokens - 1


def test_the_same_conversation_as_in_chat_has_the_same_text(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
    messages.append({"role": "user", "content": QUESTION})
    response = client.responses.create(model="tiny", input=messages, temperature=0, max_output_tokens=20)
    chat = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=20)
    assert response.output_text == chat.choices[0].message.content
    assert response.usage is not None
    assert chat.usage is not None
    assert response.usage.input_tokens == chat.usage.prompt_tokens
    counted = client.responses.input_tokens.count(model="tiny", input=messages)
    assert counted.input_tokens == chat.usage.prompt_tokens


def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "tools": [TOOL], "max_output_tokens": 100}
    first = client.responses.create(**asked, input=QUESTION, tool_choice="required", parallel_tool_calls=False)
    (call,) = first.output
    assert call.type == "function_call"
    assert call.name == "get_weather"
    WeatherArguments.model_validate_json(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "Rain."}
    history: Any = [{"role": "user", "content": QUESTION}, *first.output, result]
    final = client.responses.create(**asked, input=history, tool_choice="none")
    assert [item.type for item in final.output] == ["message"]
    assert final.output_text


def test_calls_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "input": QUESTION, "tools": [TOOL], "tool_choice": "required"}
    with client.responses.stream(**asked, max_output_tokens=400) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
        final = stream.get_final_response()
    calls = [item for item in final.output if item.type == "function_call"]
    assert calls
    assert [event.arguments for event in done] == [call.arguments for call in calls]
    for call in calls:
        WeatherArguments.model_validate_json(call.arguments)


def test_parse(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "input": QUESTION, "text_format": Trip, "max_output_tokens": 300}
    assert isinstance(client.responses.parse(**asked).output_parsed, Trip)
    with client.responses.stream(**asked) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Trip)


def test_async(client: openai.OpenAI, url: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
            asked: Any = {"model": "tiny", "input": QUESTION, "temperature": 0, "max_output_tokens": 20}
            whole = await client.responses.create(**asked)
            events = [event async for event in await client.responses.create(**asked, stream=True)]
            parts = [event.delta for event in events if event.type == "response.output_text.delta"]
            assert "".join(parts) == whole.output_text
            asked = {"model": "tiny", "input": QUESTION, "text_format": Trip, "max_output_tokens": 300}
            assert isinstance((await client.responses.parse(**asked)).output_parsed, Trip)
            async with client.responses.stream(**asked) as stream:
                assert isinstance((await stream.get_final_response()).output_parsed, Trip)

    asyncio.run(run())


def test_errors(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens") as long:
        client.responses.create(model="tiny", input="word " * 3000)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="gpt-4o", input=QUESTION)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as stored:
        client.responses.create(model="tiny", input=QUESTION, previous_response_id="resp_1")
    assert stored.value.param == "previous_response_id"
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.responses.create(model="tiny", input=QUESTION)
