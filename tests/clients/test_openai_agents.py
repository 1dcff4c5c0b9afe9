"""openai-agents over both of OpenAI's APIs: tools that it runs itself, types of output, streams, handoffs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import openai
import pytest

from tests.clients.asked import Trip
from tests.clients.conftest import KEY

agents = pytest.importorskip("agents")
# It would send what happens to OpenAI.
agents.set_tracing_disabled(True)
QUESTION = "What will the weather be in Paris?"


@pytest.fixture(params=["OpenAIChatCompletionsModel", "OpenAIResponsesModel"])
def run(request: pytest.FixtureRequest, url: str, require: Callable[[str], None]) -> Callable[..., Any]:
    """Runs a coroutine of a test with a model of this API."""
    if request.param == "OpenAIResponsesModel":
        require("/v1/responses")

    def run(test: Callable[[Any], Awaitable[None]], **client: Any) -> None:
        async def call() -> None:
            settings = {"base_url": url, "api_key": KEY, "max_retries": 0, "timeout": 60, **client}
            async with openai.AsyncOpenAI(**settings) as plain:
                await test(getattr(agents, request.param)(model="tiny", openai_client=plain))

        asyncio.run(call())

    return run


def with_tool(model: Any, called: list[str]) -> Any:
    """An agent that must call its tool first, and then answers."""

    @agents.function_tool
    def get_weather(city: Literal["Paris", "Rome"], days: int) -> str:
        """The weather of a city."""
        called.append(city)
        return f"Rain in {city} for {days} days."

    settings = agents.ModelSettings(
        tool_choice="required", parallel_tool_calls=False, max_tokens=1000, include_usage=True
    )
    return agents.Agent(name="w", instructions="Be brief.", model=model, tools=[get_weather], model_settings=settings)


def test_a_tool_is_run_and_its_result_answered(run: Callable[..., Any]) -> None:
    async def test(model: Any) -> None:
        called: list[str] = []
        result = await agents.Runner.run(with_tool(model, called), QUESTION)
        assert len(called) == 1
        assert called[0] in ("Paris", "Rome")
        assert result.final_output
        assert [item.type for item in result.new_items] == [
            "tool_call_item",
            "tool_call_output_item",
            "message_output_item",
        ]
        usage = result.context_wrapper.usage
        assert usage.requests == 2
        assert usage.total_tokens == usage.input_tokens + usage.output_tokens > 0

    run(test)


def test_streamed(run: Callable[..., Any]) -> None:
    async def test(model: Any) -> None:
        called: list[str] = []
        result = agents.Runner.run_streamed(with_tool(model, called), QUESTION)
        text = ""
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
                text += event.data.delta
        assert len(called) == 1
        assert text == result.final_output != ""
        assert result.context_wrapper.usage.requests == 2
        assert result.context_wrapper.usage.output_tokens > 0

    run(test)


def test_a_type_of_output(run: Callable[..., Any]) -> None:
    async def test(model: Any) -> None:
        settings = agents.ModelSettings(max_tokens=300)
        agent = agents.Agent(name="t", model=model, output_type=Trip, model_settings=settings)
        assert isinstance((await agents.Runner.run(agent, QUESTION)).final_output, Trip)

    run(test)


def test_a_handoff(run: Callable[..., Any]) -> None:
    """To an agent that answers; the conversation so far goes with it."""

    async def test(model: Any) -> None:
        brief = agents.ModelSettings(max_tokens=1000)
        second = agents.Agent(name="second", instructions="Answer.", model=model, model_settings=brief)
        must = agents.ModelSettings(tool_choice="required", parallel_tool_calls=False, max_tokens=100)
        first = agents.Agent(name="first", model=model, handoffs=[second], model_settings=must)
        result = await agents.Runner.run(first, QUESTION)
        assert result.last_agent is second
        assert result.final_output

    run(test)


def test_errors(run: Callable[..., Any]) -> None:
    async def ask(model: Any, text: str = QUESTION) -> None:
        await agents.Runner.run(agents.Agent(name="e", model=model), text)

    async def too_long(model: Any) -> None:
        with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens"):
            await ask(model, "word " * 3000)

    async def wrong_key(model: Any) -> None:
        with pytest.raises(openai.AuthenticationError):
            await ask(model)

    run(too_long)
    run(wrong_key, api_key="wrong")
