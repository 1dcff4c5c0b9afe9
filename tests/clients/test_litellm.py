"""litellm, as clients and proxies call it: chat, streams, tools, structured output, completions, embeddings, all its
APIs, and the exceptions that it maps errors to."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.clients.asked import QUESTION, TOO_LONG, TOOL, Trip, WeatherArguments
from tests.clients.conftest import KEY
from tests.integration.conftest import ServerProcess

# Otherwise it fetches a table of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
litellm = pytest.importorskip("litellm")
litellm.suppress_debug_info = True
# About types of its own, and about how it uses pydantic.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*`ReadOnly` qualifier"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # It leaves event loops and their sockets to the garbage collector.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
NAMED = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module", autouse=True)
def collected() -> Iterator[None]:
    """What it leaves is collected here, and not in the tests of others."""
    yield
    gc.collect()


@pytest.fixture(params=["openai", "hosted_vllm"])
def asked(request: pytest.FixtureRequest, url: str) -> dict[str, Any]:
    """For both of its names for servers like this one."""
    return {
        "model": f"{request.param}/tiny",
        "api_base": url,
        "api_key": KEY,
        "num_retries": 0,
        "messages": QUESTION,
        "max_tokens": 300,
    }


def test_whole_and_streamed(asked: dict[str, Any]) -> None:
    asked |= {"seed": 7, "max_tokens": 30}
    whole = litellm.completion(**asked)
    chunks = list(litellm.completion(**asked, stream=True, stream_options={"include_usage": True}))
    built = litellm.stream_chunk_builder(chunks)
    assert built.choices[0].message.content == whole.choices[0].message.content != ""
    assert built.choices[0].finish_reason == whole.choices[0].finish_reason
    for counted in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert built.usage[counted] == whole.usage[counted] > 0


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_tool_is_called_and_its_result_answered(asked: dict[str, Any], choice: Any) -> None:
    first = litellm.completion(**asked, tools=[TOOL], tool_choice=choice, parallel_tool_calls=False).choices[0]
    assert first.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    WeatherArguments.model_validate_json(call.function.arguments)
    history = [*QUESTION, first.message, {"role": "tool", "tool_call_id": call.id, "content": "Rain."}]
    final = litellm.completion(**{**asked, "messages": history}, tools=[TOOL], tool_choice="none").choices[0]
    assert final.message.content
    assert not final.message.tool_calls


def test_calls_streamed(asked: dict[str, Any]) -> None:
    chunks = list(litellm.completion(**asked, tools=[TOOL], tool_choice="required", stream=True))
    calls = litellm.stream_chunk_builder(chunks).choices[0].message.tool_calls
    assert calls
    for call in calls:
        WeatherArguments.model_validate_json(call.function.arguments)


def test_structured_output(asked: dict[str, Any]) -> None:
    Trip.model_validate_json(litellm.completion(**asked, response_format=Trip).choices[0].message.content)


def test_async(asked: dict[str, Any]) -> None:
    async def run() -> tuple[str, str]:
        whole = await litellm.acompletion(**asked, seed=1)
        parts = [
            chunk.choices[0].delta.content async for chunk in await litellm.acompletion(**asked, seed=1, stream=True)
        ]
        return whole.choices[0].message.content, "".join(part or "" for part in parts)

    whole, streamed = asyncio.run(run())
    assert whole == streamed != ""


def test_completions(url: str) -> None:
    answer = litellm.text_completion(
        model="text-completion-openai/tiny", prompt="Once", api_base=url, api_key=KEY, max_tokens=4, logprobs=2
    )
    assert answer.choices[0].text
    assert len(answer.choices[0].logprobs.token_logprobs) == answer.usage.completion_tokens


def test_models(url: str) -> None:
    models = litellm.get_valid_models(
        check_provider_endpoint=True, custom_llm_provider="openai", api_key=KEY, api_base=url
    )
    assert models == ["tiny"]


def test_embeddings(url: str, require: Callable[[str], None]) -> None:
    require("/v1/embeddings")
    answer = litellm.embedding(model="openai/tiny", input=["Once", "Hello"], api_base=url, api_key=KEY)
    assert [entry["index"] for entry in answer.data] == [0, 1]
    assert all(len(entry["embedding"]) == 48 for entry in answer.data)


def test_the_responses_api(url: str, require: Callable[[str], None]) -> None:
    require("/v1/responses")
    asked: Any = {"model": "openai/tiny", "input": "Hello", "api_base": url, "api_key": KEY, "max_output_tokens": 20}
    answer = litellm.responses(**asked, temperature=0)
    (message,) = answer.output
    text = message.content[0].text
    events = list(litellm.responses(**asked, temperature=0, stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == text != ""


def test_the_messages_api(server: ServerProcess, require: Callable[[str], None]) -> None:
    require("/v1/messages")
    asked: Any = {"model": "anthropic/tiny", "messages": QUESTION, "api_base": server.url, "api_key": KEY}
    answer = litellm.completion(**asked, max_tokens=30, temperature=0)
    chunks = list(litellm.completion(**asked, max_tokens=30, temperature=0, stream=True))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == answer.choices[0].message.content != ""


def test_errors(asked: dict[str, Any]) -> None:
    with pytest.raises(litellm.ContextWindowExceededError, match="maximum context length is 2048 tokens"):
        litellm.completion(**{**asked, "messages": TOO_LONG})
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(**{**asked, "model": f"{asked['model']}-other"})
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**asked, "api_key": "wrong"})
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**asked, temperature=9)
