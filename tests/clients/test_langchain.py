"""langchain-openai: chat models, streams, tools, structured output, embeddings, and both of OpenAI's APIs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from tests.clients.asked import TOO_LONG, TOOL, Anything, Forecast, Trip, WeatherArguments
from tests.clients.conftest import KEY

langchain_openai = pytest.importorskip("langchain_openai")
messages = pytest.importorskip("langchain_core.messages")
exceptions = pytest.importorskip("langchain_core.exceptions")

# It warns of the type of a field of its own, when it copies what the openai package has parsed.
pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
QUESTION = "What will the weather be in Paris?"


@pytest.fixture
def model(url: str) -> Callable[..., Any]:
    """Makes a chat model."""

    def model(**settings: Any) -> Any:
        given = {"model": "tiny", "base_url": url, "api_key": KEY, "max_retries": 0, "max_tokens": 300}
        return langchain_openai.ChatOpenAI(**{**given, **settings})

    return model


def test_invoked_and_streamed(model: Callable[..., Any]) -> None:
    chat = model(seed=5, max_tokens=30, stream_usage=True)
    whole = chat.invoke(QUESTION)
    assert whole.content
    assert whole.usage_metadata["total_tokens"] > whole.usage_metadata["output_tokens"] > 0
    streamed = messages.AIMessageChunk("")
    for chunk in chat.stream(QUESTION):
        streamed += chunk
    assert streamed.content == whole.content
    assert streamed.usage_metadata == whole.usage_metadata
    assert streamed.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]


def test_conversations_in_batches_and_async(model: Callable[..., Any]) -> None:
    chat = model(temperature=0, max_tokens=20)
    talk = [
        messages.SystemMessage("Be brief."),
        messages.HumanMessage("Hi"),
        messages.AIMessage("Hello."),
        messages.HumanMessage(QUESTION),
    ]
    texts = [answer.content for answer in chat.batch([talk, QUESTION, "Once"])]
    assert all(texts)
    assert asyncio.run(chat.ainvoke(talk)).content == texts[0]


def test_logprobs(model: Callable[..., Any]) -> None:
    told = model(logprobs=True, top_logprobs=2, max_tokens=4).invoke(QUESTION).response_metadata["logprobs"]["content"]
    assert all(len(token["top_logprobs"]) == 2 for token in told)


@pytest.mark.parametrize("choice", ["any", "get_weather"])
@pytest.mark.parametrize("strict", [True, False])
def test_a_tool_is_called_and_its_result_answered(model: Callable[..., Any], choice: str, strict: bool) -> None:
    chat = model()
    calling = chat.bind_tools([TOOL], tool_choice=choice, strict=strict, parallel_tool_calls=False)
    first = calling.invoke(QUESTION)
    (call,) = first.tool_calls
    assert call["name"] == "get_weather"
    WeatherArguments.model_validate(call["args"])
    talk = [messages.HumanMessage(QUESTION), first, messages.ToolMessage("Rain.", tool_call_id=call["id"])]
    final = chat.bind_tools([TOOL], tool_choice="none").invoke(talk)
    assert final.content
    assert not final.tool_calls


def test_calls_streamed(model: Callable[..., Any]) -> None:
    calling = model().bind_tools([TOOL], tool_choice="any")
    streamed = messages.AIMessageChunk("")
    for chunk in calling.stream(QUESTION):
        streamed += chunk
    assert streamed.tool_calls
    assert not streamed.invalid_tool_calls
    for call in streamed.tool_calls:
        WeatherArguments.model_validate(call["args"])


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
@pytest.mark.parametrize("kind", [Forecast, Trip])
def test_structured_output(model: Callable[..., Any], method: str, kind: type) -> None:
    asking = model().with_structured_output(kind, method=method)
    assert isinstance(asking.invoke(QUESTION), kind)
    *_, last = asking.stream(QUESTION)
    assert isinstance(last, kind)


def test_json_mode(model: Callable[..., Any]) -> None:
    asking = model().with_structured_output(Anything, method="json_mode")
    assert isinstance(asking.invoke("Answer in JSON."), Anything)


def test_completions(url: str) -> None:
    model = langchain_openai.OpenAI(model="tiny", base_url=url, api_key=KEY, max_tokens=20, seed=4, max_retries=0)
    assert "".join(model.stream("Once")) == model.invoke("Once")


def test_embeddings(url: str, require: Callable[[str], None]) -> None:
    require("/v1/embeddings")
    # Otherwise it fetches the vocabulary of one of OpenAI's models, and sends that model's token ids.
    model = langchain_openai.OpenAIEmbeddings(
        model="tiny", base_url=url, api_key=KEY, max_retries=0, check_embedding_ctx_length=False
    )
    first, second = model.embed_documents(["Once upon a time", "Hello"])
    assert math.isclose(sum(value * value for value in first), 1, abs_tol=1e-5)
    assert model.embed_query("Hello") == pytest.approx(second, abs=1e-5)


def test_the_responses_api(model: Callable[..., Any], require: Callable[[str], None]) -> None:
    require("/v1/responses")
    chat = model(use_responses_api=True, temperature=0)
    whole = chat.invoke(QUESTION, max_tokens=30)
    streamed = messages.AIMessageChunk("")
    for chunk in chat.stream(QUESTION, max_tokens=30):
        streamed += chunk
    assert streamed.text == whole.text != ""
    assert isinstance(chat.with_structured_output(Trip, method="json_schema").invoke(QUESTION), Trip)
    first = chat.bind_tools([TOOL], tool_choice="any", parallel_tool_calls=False).invoke(QUESTION)
    (call,) = first.tool_calls
    WeatherArguments.model_validate(call["args"])
    talk = [messages.HumanMessage(QUESTION), first, messages.ToolMessage("Rain.", tool_call_id=call["id"])]
    assert chat.bind_tools([TOOL], tool_choice="none").invoke(talk, max_tokens=30).text


def test_errors(model: Callable[..., Any]) -> None:
    with pytest.raises(exceptions.ContextOverflowError, match="maximum context length is 2048 tokens"):
        model().invoke(TOO_LONG)
    with pytest.raises(exceptions.ModelNotFoundError):
        model(model="gpt-4o").invoke(QUESTION)
    with pytest.raises(exceptions.ModelAuthenticationError):
        model(api_key="wrong").invoke(QUESTION)
