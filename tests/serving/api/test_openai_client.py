"""The openai package, sync and async, against the server on a real port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from mistral_jax.chat.output.formats import OutputFormat, tool_format
from tests.serving.fakes import FakeChat, FakeEngine, fake_service
from tests.serving.harness import listening

TEXT = "Hello, wörld! 🙂"
MESSAGES: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with listening(FakeEngine(TEXT), api_keys=("key",)) as server:
        yield f"{server.url}/v1"


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="key", max_retries=0) as client:
        yield client


def test_models(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id == "acme/tiny-mistral"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="default", messages=MESSAGES, n=2, logprobs=True, top_logprobs=2, seed=1, max_completion_tokens=100
    )
    assert [choice.message.content for choice in answer.choices] == [TEXT, TEXT]
    assert [choice.finish_reason for choice in answer.choices] == ["stop", "stop"]
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer._request_id


def test_chat_stream(client: openai.OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="default", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == TEXT
    assert chunks[-1].usage is not None
    with client.chat.completions.stream(model="default", messages=MESSAGES) as stream:
        assert stream.get_final_completion().choices[0].message.content == TEXT


def test_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="default", prompt=["a", "b"], logprobs=1, max_tokens=3)
    assert [choice.text for choice in answer.choices] == [TEXT[:3]] * 2
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.text_offset == [0, 1, 2]
    stream = client.completions.create(model="default", prompt=[[5, 6]], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == TEXT


def test_async(url: str) -> None:
    async def ask() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="key") as client:
            answer = await client.chat.completions.create(model="default", messages=MESSAGES)
            stream = await client.chat.completions.create(model="default", messages=MESSAGES, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return answer.choices[0].message.content or "", "".join(parts)

    assert asyncio.run(ask()) == (TEXT, TEXT)


def test_errors_become_the_packages_exceptions(url: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="default", messages=MESSAGES, temperature=3)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.BadRequestError, match="maximum context length is 256 tokens") as too_long:
        client.chat.completions.create(model="default", messages=[{"role": "user", "content": "x" * 400}])
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-4o", messages=MESSAGES)
    assert missing.value.code == "model_not_found"
    with (
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()


def test_a_failing_stream_raises() -> None:
    with (
        listening(FakeEngine(TEXT, fail_after=3)) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client,
    ):
        stream = client.chat.completions.create(model="default", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="NaN"):
            list(stream)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="default", messages=MESSAGES)


def test_a_full_queue_is_retried() -> None:
    engine = FakeEngine("x" * 20, slots=1, queue_limit=1, delay=0.005)
    engine_submit = engine.submit
    refusals: list[int] = []

    def submit(requests: Any, deliver: Any) -> None:
        from serving.engine.messages import QueueFullError

        if len(refusals) < 2:
            refusals.append(1)
            raise QueueFullError("the queue is full", retry_after=0)
        engine_submit(requests, deliver)

    engine.submit = submit  # type: ignore[method-assign]
    with (
        listening(engine) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=3) as client,
    ):
        answer = client.chat.completions.create(model="default", messages=MESSAGES)
    assert answer.choices[0].message.content == "x" * 20
    assert len(refusals) == 2


# Tools.

TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}},
                "required": ["city"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
]
CALLS = (
    'Two calls.\n<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>\n'
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
)


@pytest.fixture(scope="module")
def tools_url() -> Iterator[str]:
    chat = FakeChat(OutputFormat(tools=tool_format("hermes", {})))
    with listening(service=fake_service(FakeEngine(CALLS), chat=chat)) as server:
        yield f"{server.url}/v1"


def test_tool_calls(tools_url: str) -> None:
    with openai.OpenAI(base_url=tools_url, api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="default", messages=MESSAGES, tools=TOOLS)
        message = answer.choices[0].message
        assert (message.content, answer.choices[0].finish_reason) == ("Two calls.", "tool_calls")
        assert message.tool_calls is not None
        assert [call.function.arguments for call in message.tool_calls if call.type == "function"] == [
            '{"city": "Paris"}',
            '{"city": "Rome"}',
        ]
        results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "20"} for call in message.tool_calls]
        history: Any = [*MESSAGES, message, *results]
        again = client.chat.completions.create(
            model="default", messages=history, tools=TOOLS, tool_choice="required", parallel_tool_calls=True
        )
        assert again.choices[0].message.tool_calls


def test_tool_calls_parsed_and_streamed(tools_url: str) -> None:
    with openai.OpenAI(base_url=tools_url, api_key="none", max_retries=0) as client:
        parsed = client.chat.completions.parse(model="default", messages=MESSAGES, tools=TOOLS)
        assert parsed.choices[0].message.tool_calls is not None
        assert [call.function.parsed_arguments for call in parsed.choices[0].message.tool_calls] == [
            {"city": "Paris"},
            {"city": "Rome"},
        ]
        done: list[Any] = []
        with client.chat.completions.stream(model="default", messages=MESSAGES, tools=TOOLS) as stream:
            done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
            final = stream.get_final_completion().choices[0]
        assert [(event.name, event.parsed_arguments) for event in done] == [
            ("get_weather", {"city": "Paris"}),
            ("get_weather", {"city": "Rome"}),
        ]
        assert final.message.content == "Two calls."
        assert final.finish_reason == "tool_calls"
