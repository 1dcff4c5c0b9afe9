"""`client.responses` of the openai package, unchanged, against the server on a real port."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from mistral_jax.chat.output.formats import OutputFormat, tool_format
from tests.serving.api.controllers.test_tools import THINK
from tests.serving.fakes import FakeChat, FakeEngine, fake_service
from tests.serving.harness import listening

TEXT = "Hello, wörld! 🙂"
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "Now.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALLS = (
    "<think>\nWhere?\n</think>\n\nTwo calls.\n"
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Paris"}}</tool_call>\n'
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
)


class City(pydantic.BaseModel):
    name: str
    people: int


@pytest.fixture
def client() -> Iterator[openai.OpenAI]:
    with listening(FakeEngine(TEXT)) as server, _client(server.url) as client:
        yield client


@pytest.fixture
def with_tools() -> Iterator[openai.OpenAI]:
    chat = FakeChat(OutputFormat(tools=tool_format("hermes", {}), reasoning=THINK))
    with listening(service=fake_service(FakeEngine(CALLS), chat=chat)) as server, _client(server.url) as client:
        yield client


@pytest.fixture
def structured() -> Iterator[openai.OpenAI]:
    with listening(FakeEngine('{"name": "Paris", "people": 2}')) as server, _client(server.url) as client:
        yield client


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_create(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model="default", input="hi", instructions="Be brief.", max_output_tokens=100, store=False, metadata={"a": "b"}
    )
    assert (answer.output_text, answer.status, answer.metadata) == (TEXT, "completed", {"a": "b"})
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer._request_id
    assert client.responses.input_tokens.count(model="default", input="hi").input_tokens == 9


def test_the_output_of_a_response_goes_into_the_next_input(with_tools: openai.OpenAI) -> None:
    answer = with_tools.responses.create(model="default", input="hi", tools=[TOOL])
    assert [item.type for item in answer.output] == ["reasoning", "message", "function_call", "function_call"]
    assert [item.name for item in answer.output if item.type == "function_call"] == ["get_weather"] * 2
    history: Any = [
        {"role": "user", "content": "hi"},
        *answer.output,
        *(
            {"type": "function_call_output", "call_id": item.call_id, "output": "20"}
            for item in answer.output
            if item.type == "function_call"
        ),
    ]
    again = with_tools.responses.create(model="default", input=history, tools=[TOOL], tool_choice="required")
    assert again.output_text == "Two calls."


def test_raw_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="default", input="hi", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == TEXT


def test_stream_with_tools(with_tools: openai.OpenAI) -> None:
    with with_tools.responses.stream(model="default", input="hi", tools=[TOOL]) as stream:
        done = [event for event in stream if event.type == "response.function_call_arguments.done"]
        final = stream.get_final_response()
    assert [event.arguments for event in done] == ['{"city": "Paris"}', '{"city": "Rome"}']
    calls = [item for item in final.output if item.type == "function_call"]
    assert [call.parsed_arguments for call in calls] == [{"city": "Paris"}, {"city": "Rome"}]


def test_structured_output(structured: openai.OpenAI) -> None:
    parsed = structured.responses.parse(model="default", input="hi", text_format=City)
    assert parsed.output_parsed == City(name="Paris", people=2)
    with structured.responses.stream(model="default", input="hi", text_format=City) as stream:
        (done,) = [event for event in stream if event.type == "response.output_text.done"]
        final = stream.get_final_response()
    assert done.parsed == City(name="Paris", people=2)
    assert final.output_parsed == City(name="Paris", people=2)


def test_async() -> None:
    async def ask(url: str) -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none") as client:
            answer = await client.responses.create(model="default", input="hi")
            async with client.responses.stream(model="default", input="hi") as stream:
                return answer.output_text, (await stream.get_final_response()).output_text

    with listening(FakeEngine(TEXT)) as server:
        assert asyncio.run(ask(server.url)) == (TEXT, TEXT)


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="send the earlier items") as bad:
        client.responses.create(model="default", input="hi", previous_response_id="resp_1")
    assert bad.value.param == "previous_response_id"
    with pytest.raises(openai.NotFoundError, match="stores none"):
        client.responses.retrieve("resp_1")
    with pytest.raises(openai.NotFoundError, match="stores none"):
        client.responses.delete("resp_1")
    with pytest.raises(openai.NotFoundError) as missing:
        client.responses.create(model="other", input="hi")
    assert missing.value.code == "model_not_found"


def test_a_failing_stream() -> None:
    with listening(FakeEngine(TEXT, fail_after=3)) as server, _client(server.url) as client:
        events = list(client.responses.create(model="default", input="hi", stream=True))
        assert [event.type for event in events[-2:]] == ["error", "response.failed"]
        with pytest.raises(openai.InternalServerError):
            client.responses.create(model="default", input="hi")
