"""The openai package: chat, streams, tools, structured output, completions and embeddings; sync and async."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import openai
import pytest

from tests.clients.asked import QUESTION, TOO_LONG, TOOL, Forecast, Trip, WeatherArguments
from tests.clients.conftest import KEY

FORECAST_TOOL = openai.pydantic_function_tool(Forecast, name="forecast")


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").object == "model"


def test_chat_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": QUESTION, "seed": 7, "max_completion_tokens": 30}
    answer = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    (choice,) = answer.choices
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == choice.message.content
    # Now the prompt is in the cache.
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.total_tokens == answer.usage.total_tokens
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == usage.prompt_tokens - 1
    with client.chat.completions.stream(**asked) as stream:
        assert [event.type for event in stream][-1] in ("content.done", "chunk")
        assert stream.get_final_completion().choices[0].message.content == choice.message.content


def test_headers_of_raw_responses(client: openai.OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=QUESTION, max_tokens=1)
    assert raw.headers["x-request-id"] == raw.request_id == raw.parse()._request_id


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_tool_is_called_and_its_result_answered(client: openai.OpenAI, choice: Any) -> None:
    asked: Any = {"model": "tiny", "tools": [TOOL], "max_tokens": 100}
    answer = client.chat.completions.create(
        **asked, messages=QUESTION, tool_choice=choice, parallel_tool_calls=False
    ).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    WeatherArguments.model_validate_json(call.function.arguments)
    history: Any = [*QUESTION, answer.message, {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    final = client.chat.completions.create(**asked, messages=history, tool_choice="none").choices[0]
    assert final.message.tool_calls is None
    assert final.message.content


def test_several_calls_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "messages": QUESTION, "tools": [TOOL, FORECAST_TOOL], "tool_choice": "required"}
    whole = client.chat.completions.create(**asked, seed=3, max_tokens=400).choices[0]
    with client.chat.completions.stream(**asked, seed=3, max_tokens=400) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        streamed = stream.get_final_completion().choices[0]
    assert streamed.finish_reason == whole.finish_reason == "tool_calls"
    calls = [(call.function.name, call.function.arguments) for call in streamed.message.tool_calls or []]
    assert calls
    assert calls == [
        (c.function.name, c.function.arguments) for c in whole.message.tool_calls or [] if c.type == "function"
    ]
    assert [(event.name, event.arguments) for event in done] == calls
    for name, arguments in calls:
        {"get_weather": WeatherArguments, "forecast": Forecast}[name].model_validate_json(arguments)


@pytest.mark.parametrize("seed", range(4))
def test_parse(client: openai.OpenAI, seed: int) -> None:
    asked: Any = {"model": "tiny", "messages": QUESTION, "seed": seed, "max_tokens": 300}
    parsed = client.chat.completions.parse(**asked, response_format=Trip).choices[0].message.parsed
    assert isinstance(parsed, Trip)
    with client.chat.completions.stream(**asked, response_format=Trip) as stream:
        (done,) = [event for event in stream if event.type == "content.done"]
    assert done.parsed == parsed
    message = client.chat.completions.parse(
        **asked, tools=[FORECAST_TOOL], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = message.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, Forecast)


def test_structured_output_without_room_for_it(client: openai.OpenAI) -> None:
    with pytest.raises(openai.LengthFinishReasonError) as cut:
        client.chat.completions.parse(model="tiny", messages=QUESTION, response_format=Trip, max_tokens=5)
    assert cut.value.completion.usage is not None
    assert cut.value.completion.usage.completion_tokens == 5


def test_json_mode(client: openai.OpenAI) -> None:
    """Random weights may fill 400 tokens with one string, but not each time."""
    ended: list[str] = []
    for seed in range(10):
        answer = client.chat.completions.create(
            model="tiny", messages=QUESTION, response_format={"type": "json_object"}, max_tokens=400, seed=seed
        )
        text = answer.choices[0].message.content or ""
        assert text.startswith("{")
        if answer.choices[0].finish_reason == "stop":
            ended.append(text)
        if len(ended) == 2:
            break
    assert ended
    assert all(isinstance(json.loads(text), dict) for text in ended)


def test_completions(client: openai.OpenAI) -> None:
    asked: Any = {"model": "tiny", "prompt": ["Once", "Then"], "max_tokens": 8, "seed": 1}
    answer = client.completions.create(**asked, logprobs=2, echo=True)
    for choice in answer.choices:
        assert choice.logprobs is not None
        assert len(choice.logprobs.tokens or []) == len(choice.logprobs.top_logprobs or [])
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert [choice.text for choice in answer.choices] == [f"Once{texts[0]}", f"Then{texts[1]}"]


def test_embeddings(client: openai.OpenAI, require: Callable[[str], None]) -> None:
    require("/v1/embeddings")
    # The package asks for base64 by itself.
    answer = client.embeddings.create(model="tiny", input=["Once upon a time", "Hello"])
    assert [entry.index for entry in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens > 0
    for entry in answer.data:
        assert math.isclose(sum(value * value for value in entry.embedding), 1, abs_tol=1e-5)
    plain = client.embeddings.create(model="tiny", input="Hello", encoding_format="float")
    np.testing.assert_allclose(plain.data[0].embedding, answer.data[1].embedding, atol=1e-6)
    raw = client.embeddings.create(model="tiny", input="Hello", encoding_format="base64", dimensions=16)
    assert len(base64.b64decode(str(raw.data[0].embedding))) == 4 * 16


def test_async(url: str) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0, timeout=60) as client:
            asked: Any = {"model": "tiny", "messages": QUESTION, "max_tokens": 40}
            answers = await asyncio.gather(*(client.chat.completions.create(**asked, seed=i) for i in range(8)))
            for seed, answer in enumerate(answers):
                parts: list[str] = []
                async for chunk in await client.chat.completions.create(**asked, seed=seed, stream=True):
                    parts += [choice.delta.content or "" for choice in chunk.choices]
                assert "".join(parts) == answer.choices[0].message.content
            asked["max_tokens"] = 300
            parsed = await client.chat.completions.parse(**asked, response_format=Trip)
            assert isinstance(parsed.choices[0].message.parsed, Trip)
            async with client.chat.completions.stream(**asked, tools=[FORECAST_TOOL], tool_choice="required") as stream:
                final = await stream.get_final_completion()
            calls = final.choices[0].message.tool_calls or []
            assert calls
            assert all(isinstance(call.function.parsed_arguments, Forecast) for call in calls)

    asyncio.run(run())


def test_errors(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens") as long:
        client.chat.completions.create(model="tiny", messages=TOO_LONG)
    assert (long.value.code, long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert missing.value.code == "model_not_found"
    with openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as other:
        with pytest.raises(openai.AuthenticationError) as unknown:
            other.models.list()
        assert unknown.value.code == "invalid_api_key"
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(
            model="tiny",
            messages=QUESTION,
            response_format={
                "type": "json_schema",
                "json_schema": {"name": "x", "strict": True, "schema": {"type": "object", "not": {}}},
            },
        )
    assert bad.value.param is not None
    assert bad.value.param.startswith("response_format")


def test_a_full_queue_is_refused_and_retried(
    url: str, client: openai.OpenAI, full_queue: Callable[[], AbstractContextManager[Callable[[], None]]]
) -> None:
    with full_queue() as end:
        with pytest.raises(openai.InternalServerError) as busy:
            client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=5)
        assert busy.value.status_code == 503
        assert int(busy.value.response.headers["retry-after"]) >= 1
        timer = threading.Timer(0.5, end)
        timer.start()
        answer = client.with_options(max_retries=5).chat.completions.create(
            model="tiny", messages=QUESTION, max_tokens=5
        )
        timer.join()
    assert answer.choices[0].message.content
