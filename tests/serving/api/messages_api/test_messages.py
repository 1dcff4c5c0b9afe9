"""POST /v1/messages: messages, whole and streamed, and errors in Anthropic's shape."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest

from mistral_jax.chat.output.formats import OutputFormat
from serving.api.messages_api.response import Message, MessageError, MessageEvent
from tests.mistral_jax.chat.output.completions import Items, written
from tests.serving.api.controllers.test_tools import PARIS, THINK, format_of, reply_of
from tests.serving.fakes import FakeChat, FakeEngine, fake_service
from tests.serving.harness import MESSAGES, named_events_of, running

pytestmark = pytest.mark.anyio

PATH = "/v1/messages"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS = [
    {"name": "get_weather", "description": "Now.", "input_schema": SCHEMA},
    {"type": "custom", "name": "now", "input_schema": {"type": "object"}},
]


async def ask(
    reply: str | Items = "Hello, wörld! 🙂",
    output: OutputFormat | FakeChat | None = None,
    *,
    engine: FakeEngine | None = None,
    **body: Any,
) -> httpx.Response:
    engine = engine or FakeEngine(reply if isinstance(reply, str) else reply_of(reply))
    chat = output if isinstance(output, FakeChat) else FakeChat(output)
    async with running(service=fake_service(engine, chat=chat)) as client:
        return await client.post(PATH, json={"messages": MESSAGES, "max_tokens": 200, **body})


def error_of(response: httpx.Response, status: int = 400) -> Any:
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"type", "error"}
    assert body["error"].keys() == {"type", "message"}
    msgspec.convert(body, MessageError)
    return body["error"]


def merged(events: list[Any]) -> dict[str, Any]:
    """The message that a stream adds up to."""
    for event in events:
        msgspec.convert(event, MessageEvent)
    start, *rest = [event for event in events if event["type"] != "ping"]
    assert start["type"] == "message_start"
    message = start["message"]
    assert (message["content"], message["stop_reason"]) == ([], None)
    arguments = ""
    for event in rest[:-2]:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            arguments = ""
            continue
        assert event["index"] == len(message["content"]) - 1
        block = message["content"][-1]
        if event["type"] == "content_block_stop":
            if block["type"] == "tool_use":
                block["input"] = _json_or_nothing(arguments)
            continue
        match event["delta"]:
            case {"type": "text_delta", "text": text}:
                block["text"] += text
            case {"type": "thinking_delta", "thinking": text}:
                block["thinking"] += text
            case {"type": "input_json_delta", "partial_json": text}:
                arguments += text
            case other:
                raise AssertionError(other)
    ended, stopped = rest[-2:]
    assert (ended["type"], stopped) == ("message_delta", {"type": "message_stop"})
    return {**message, **ended["delta"], "usage": ended["usage"], "timings": ended["timings"]}


def _json_or_nothing(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return {}


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in message.items() if name not in ("id", "timings")}
    blocks = [{name: value for name, value in block.items() if name != "id"} for block in kept["content"]]
    return {**kept, "content": blocks}


async def test_a_text() -> None:
    response = await ask(system="Be brief.")
    body = response.json()
    msgspec.convert(body, Message)
    assert body.pop("id").startswith("msg_")
    assert body.pop("timings")["predicted_n"] == 20
    assert body == {
        "type": "message",
        "role": "assistant",
        "model": "acme/tiny-mistral",
        "content": [{"type": "text", "text": "Hello, wörld! 🙂", "citations": None}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 26,
            "output_tokens": 20,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens_details": {"thinking_tokens": 0},
            "service_tier": "standard",
        },
    }
    assert response.headers["request-id"] == response.headers["x-request-id"]


async def test_a_tool_is_used_after_thinking_and_a_text() -> None:
    reply = ["<think>\nHm\n</think>\n\nSo: ", *written("hermes", [PARIS, ("now", "{}")])]
    body = (await ask(reply, format_of("hermes", THINK), tools=TOOLS)).json()
    uses = body["content"][2:]
    assert body["content"][:2] == [
        {"type": "thinking", "thinking": "Hm", "signature": ""},
        {"type": "text", "text": "So:", "citations": None},
    ]
    assert [(use["type"], use["name"], use["input"]) for use in uses] == [
        ("tool_use", "get_weather", {"city": "Pärîs"}),
        ("tool_use", "now", {}),
    ]
    assert len({use["id"] for use in uses}) == 2
    assert body["stop_reason"] == "tool_use"
    assert body["usage"]["output_tokens_details"]["thinking_tokens"] == len("<think>\nHm\n</think>")


REPLIES: list[tuple[OutputFormat, Items]] = [
    (OutputFormat(), ["Hi 🙂."]),
    (OutputFormat(), [""]),
    (format_of("hermes"), ["Well. ", *written("hermes", [PARIS, ("now", "{}")]), "\n"]),
    (format_of("hermes", THINK), ["<think>\nHm\n</think>\n\nSo: ", *written("hermes", [PARIS])]),
    (format_of("hermes", THINK), ["<think>Hm"]),
    (format_of("mistral-v13"), [*written("mistral-v13", [PARIS] * 2)]),
    (format_of("llama3"), ['{"name": "now", "parameters": {}}']),
]


@pytest.mark.parametrize("limit", [15, 60, 200])
@pytest.mark.parametrize(("output", "items"), REPLIES)
async def test_a_stream_adds_up_to_the_whole(output: OutputFormat, items: Items, limit: int) -> None:
    body = {"tools": TOOLS if output.tools else [], "max_tokens": limit}
    whole = (await ask(items, output, **body)).json()
    streamed = merged(named_events_of((await ask(items, output, stream=True, **body)).text))
    assert without_ids(streamed) == without_ids(whole)


async def test_the_names_of_a_streams_events() -> None:
    events = [event["type"] for event in named_events_of((await ask("ab", stream=True)).text)]
    assert events == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_why_it_stopped() -> None:
    reply = reply_of(written("hermes", [PARIS]))
    for output, body, reason, sequence in (
        (None, {}, "end_turn", None),
        (None, {"max_tokens": 5}, "max_tokens", None),
        (None, {"stop_sequences": ["never", "call>"]}, "stop_sequence", "call>"),
        (format_of("hermes"), {"tools": TOOLS}, "tool_use", None),
        (format_of("hermes"), {"tools": TOOLS, "max_tokens": len(reply) - 20}, "max_tokens", None),
    ):
        whole = (await ask(reply, output, **body)).json()
        assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, sequence)
    assert whole["content"][0]["input"] == {}  # cut off


async def test_pings_keep_a_stream_alive() -> None:
    async with running(FakeEngine("ab", delay=0.05), keep_alive=0.01) as client:
        text = (await client.post(PATH, json={"messages": MESSAGES, "max_tokens": 9, "stream": True})).text
    events = [event["type"] for event in named_events_of(text)]
    assert events.count("ping") > 2


async def test_a_stream_that_fails_ends_with_an_error() -> None:
    events = named_events_of((await ask(engine=FakeEngine("abcdef", fail_after=3), stream=True)).text)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"
    assert "NaN in weights.bin" in events[-1]["error"]["message"]
    error_of(await ask(engine=FakeEngine("abcdef", fail_after=3)), 500)


# Thinking.


async def test_thinking_is_a_setting_of_the_template() -> None:
    reasoning = format_of(None, THINK)
    enabled, disabled = {"type": "enabled", "budget_tokens": 1024}, {"type": "disabled"}
    for variables, body, expected in (
        (("reasoning_effort",), {"thinking": enabled}, {"reasoning_effort": "high"}),
        (("reasoning_effort",), {"thinking": disabled}, {"reasoning_effort": "none"}),
        (("reasoning_effort",), {"thinking": {"type": "adaptive"}}, {}),
        (("reasoning_effort",), {"output_config": {"effort": "low"}}, {"reasoning_effort": "low"}),
        (
            ("reasoning_effort",),
            {"thinking": enabled, "output_config": {"effort": "low"}},
            {"reasoning_effort": "low"},
        ),
        (("enable_thinking",), {"thinking": enabled}, {"enable_thinking": True}),
        (("enable_thinking",), {"thinking": disabled}, {"enable_thinking": False}),
        ((), {"thinking": enabled}, {}),  # it always does
    ):
        chat = FakeChat(reasoning, variables=variables)
        assert (await ask("x", chat, **body)).status_code == 200
        assert {k: v for k, v in chat.asked[0].items() if k not in ("messages", "tools")} == expected
    assert (await ask("x", FakeChat(), thinking=disabled)).status_code == 200
    for chat, body, named in (
        (FakeChat(), {"thinking": enabled}, "thinking"),
        (FakeChat(reasoning), {"thinking": disabled}, "thinking"),
        (FakeChat(), {"output_config": {"effort": "high"}}, "output_config.effort"),
        (FakeChat(), {"output_config": {"effort": "some"}}, "output_config.effort"),
        (FakeChat(), {"thinking": {"type": "between_tools"}}, "thinking.type"),
    ):
        assert error_of(await ask("x", chat, **body))["message"].startswith(f"{named}: ")


async def test_thinking_may_be_left_out() -> None:
    body: Any = {"thinking": {"type": "enabled", "budget_tokens": 1024, "display": "omitted"}}
    reply, output = "<think>Hm</think>Yes", format_of(None, THINK)
    whole = (await ask(reply, output, **body)).json()
    assert [block.get("text", block.get("thinking")) for block in whole["content"]] == ["", "Yes"]
    streamed = merged(named_events_of((await ask(reply, output, stream=True, **body)).text))
    assert without_ids(streamed) == without_ids(whole)


# What it becomes.


async def test_the_request_is_one_of_a_chat() -> None:
    engine = FakeEngine("x")
    chat = FakeChat(format_of("hermes"))
    await ask(
        output=chat,
        engine=engine,
        system=[{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}, {"type": "text", "text": "b"}],
        tools=TOOLS,
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
        stop_sequences=["z"],
        temperature=0.5,
        top_p=0.5,
        top_k=3,
        seed=4,
        max_tokens=50,
    )
    assert chat.asked[0]["messages"] == [{"role": "system", "content": "a\nb"}, {"role": "user", "content": "hi"}]
    assert [tool["function"]["name"] for tool in chat.asked[0]["tools"]] == ["get_weather", "now"]
    assert chat.asked[0]["tools"][0]["function"]["parameters"] == SCHEMA
    params = engine.submitted[0].params
    assert (params.temperature, params.top_p, params.top_k, params.seed, params.max_tokens) == (0.5, 0.5, 3, 4, 50)
    assert params.stop == ("z",)
    assert engine.submitted[0].constraint is not None


async def test_a_text_of_the_assistant_is_continued() -> None:
    engine = FakeEngine(" there")
    messages = [*MESSAGES, {"role": "assistant", "content": "Hello"}]
    body = (await ask(engine=engine, messages=messages)).json()
    assert body["content"][0]["text"] == " there"
    prompt = bytes(token - 3 for token in engine.submitted[0].prompt[1:]).decode()
    assert prompt.endswith("[assistant]Hello_")


async def test_texts_match_a_schema() -> None:
    wanted = {"type": "json_schema", "schema": SCHEMA}
    for body in ({"output_config": {"format": wanted}}, {"output_format": wanted}):
        engine = FakeEngine("{}")
        assert (await ask(engine=engine, **body)).status_code == 200
        assert engine.submitted[0].constraint is not None
    for body, named in (
        ({"output_config": {"format": {**wanted, "schema": {"type": "x"}}}}, "output_config.format.schema"),
        ({"output_format": {**wanted, "schema": {"type": "x"}}}, "output_format.schema"),
        ({"output_format": {"type": "regex"}}, "output_format.type"),
        ({"output_config": {"format": wanted}, "output_format": wanted}, "output_format"),
    ):
        assert error_of(await ask(**body))["message"].startswith(f"{named}: ")


async def test_tokens_are_counted() -> None:
    chat = FakeChat(format_of("hermes"))
    async with running(service=fake_service(chat=chat)) as client:
        for body in ({"messages": MESSAGES}, {"messages": MESSAGES, "system": "Be brief.", "tools": TOOLS}):
            counted = (await client.post(f"{PATH}/count_tokens", json=body)).json()
            message = (await client.post(PATH, json={**body, "max_tokens": 5})).json()
            assert counted == {"input_tokens": message["usage"]["input_tokens"]}
        error_of(await client.post(f"{PATH}/count_tokens", json={"messages": []}))
