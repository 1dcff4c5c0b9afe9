"""Tools on /v1/chat/completions: what a model's calls look like in the response, whole and streamed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from mistral_jax.chat.output.call_ids import is_short_id
from mistral_jax.chat.output.formats import OutputFormat, ReasoningFormat, reasoning_format, tool_format
from tests.mistral_jax.chat.output.completions import MISTRAL, Items, written
from tests.serving.fakes import CONTROL, FakeChat, FakeEngine, fake_service
from tests.serving.harness import CHAT, MESSAGES, events_of, running

pytestmark = pytest.mark.anyio

PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "get_weather", "description": "Now.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
PARIS = ("get_weather", '{"city": "Pärîs"}')
THINK = reasoning_format("<think>", "</think>", {})


def reply_of(items: Items) -> str:
    """A fake engine's reply with these control tokens in it."""
    return "".join(item if isinstance(item, str) else chr(CONTROL + item) for item in items)


def format_of(name: str | None, reasoning: ReasoningFormat | None = None) -> OutputFormat:
    return OutputFormat(tools=None if name is None else tool_format(name, MISTRAL), reasoning=reasoning)


async def ask(
    reply: str | Items,
    chat: FakeChat | str = "hermes",
    *,
    engine: FakeEngine | None = None,
    **body: Any,
) -> Any:
    engine = engine or FakeEngine(reply if isinstance(reply, str) else reply_of(reply))
    used = FakeChat(format_of(chat)) if isinstance(chat, str) else chat
    async with running(service=fake_service(engine, chat=used)) as client:
        return await client.post(CHAT, json={"messages": MESSAGES, **body})


def merged(chunks: Sequence[Any]) -> list[dict[str, Any]]:
    """What the chunks of a stream add up to: a message and a finish reason for each choice."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk["choices"]:
            found = choices.setdefault(choice["index"], {"message": {"content": None}, "finish_reason": None})
            message, delta = found["message"], choice["delta"]
            for name in ("content", "reasoning_content"):
                if delta.get(name) is not None:
                    message[name] = (message.get(name) or "") + delta[name]
            for call in delta.get("tool_calls", ()):
                calls = message.setdefault("tool_calls", [])
                if call["index"] == len(calls):
                    assert call["type"] == "function"
                    calls.append({"id": call["id"], "type": "function", "function": call["function"]})
                else:
                    assert set(call) == {"index", "function"}
                    assert set(call["function"]) == {"arguments"}
                    calls[call["index"]]["function"]["arguments"] += call["function"]["arguments"]
            if function := delta.get("function_call"):
                made = message.setdefault("function_call", {"name": function.get("name"), "arguments": ""})
                made["arguments"] += function["arguments"]
            if choice["finish_reason"] is not None:
                assert found["finish_reason"] is None
                assert delta == {}
                found["finish_reason"] = choice["finish_reason"]
    return [choices[index] for index in sorted(choices)]


def without_ids(message: dict[str, Any]) -> dict[str, Any]:
    message = {name: value for name, value in message.items() if name not in ("role", "refusal")}
    for call in message.get("tool_calls", ()):
        call.pop("id")
    return message


async def test_a_call_has_openai_shape() -> None:
    response = await ask(written("mistral-v3", [PARIS, ("now", "{}")]), "mistral-v3", tools=TOOLS)
    (choice,) = response.json()["choices"]
    ids = [call.pop("id") for call in choice["message"]["tool_calls"]]
    assert choice == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {"type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Pärîs"}'}},
                {"type": "function", "function": {"name": "now", "arguments": "{}"}},
            ],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    assert len(set(ids)) == 2
    assert all(is_short_id(call_id) for call_id in ids)


async def test_ids_of_other_formats_are_like_openais() -> None:
    (choice,) = (await ask(reply_of(written("hermes", [PARIS])), tools=TOOLS)).json()["choices"]
    assert choice["message"]["tool_calls"][0]["id"].startswith("call_")


async def test_chunks_of_a_call() -> None:
    reply = 'Let me see.\n<tool_call>{"name": "now", "arguments": {"a": 1}}</tool_call>'
    chunks = events_of((await ask(reply, tools=TOOLS, stream=True)).text)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    at = next(i for i, delta in enumerate(deltas) if "tool_calls" in delta)
    (begin,) = deltas[at]["tool_calls"]
    assert begin.pop("id").startswith("call_")
    assert begin == {"index": 0, "type": "function", "function": {"name": "now", "arguments": ""}}
    assert "".join(delta.get("content") or "" for delta in deltas[:at]) == "Let me see."
    fragments = [delta["tool_calls"][0] for delta in deltas[at + 1 : -1]]
    assert all(fragment.keys() == {"index", "function"} for fragment in fragments)
    assert [fragment["function"]["arguments"] for fragment in fragments] == list('{"a": 1}')
    assert (deltas[-1], chunks[-1]["choices"][0]["finish_reason"]) == ({}, "tool_calls")


REPLIES: list[tuple[str, ReasoningFormat | None, Items]] = [
    ("hermes", None, ["Hi."]),
    ("hermes", None, ["Well. ", *written("hermes", [PARIS, ("now", "{}")]), "\n"]),
    ("hermes", THINK, ["<think>\nHm\n</think>\n\nSo: ", *written("hermes", [PARIS])]),
    ("hermes", THINK, ["<think>Hm"]),
    ("hermes", None, ['<tool_call>{"name": "nobody", "arguments": {}}</tool_call>']),
    ("mistral-v7", None, ["One moment.", *written("mistral-v7", [PARIS])]),
    (
        "mistral-v13",
        reasoning_format("[THINK]", "[/THINK]", MISTRAL),
        [22, "Hm", 23, "Ö", *written("mistral-v13", [PARIS] * 2)],
    ),
    ("mistral-v11", None, [9, "now", 21, "abcdefghi", 20, "{}"]),
    ("llama3", None, ['{"name": "now", "parameters": {}}']),
    ("llama3", None, ['{"city": "Paris"}']),
]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(("name", "reasoning", "items"), REPLIES)
async def test_a_stream_adds_up_to_the_whole(
    name: str, reasoning: ReasoningFormat | None, items: Items, legacy: bool
) -> None:
    tools: Any = {"functions": [tool["function"] for tool in TOOLS]} if legacy else {"tools": TOOLS}
    chat = FakeChat(format_of(name, reasoning))
    whole = (await ask(items, chat, n=2, **tools)).json()["choices"]
    streamed = merged(events_of((await ask(items, chat, n=2, stream=True, **tools)).text))
    for one, other in zip(whole, streamed, strict=True):
        message = without_ids(one["message"])
        assert without_ids(other["message"]) == {**message, "content": message["content"] or None}
        assert one["finish_reason"] == other["finish_reason"]


async def test_the_older_form() -> None:
    reply = written("mistral-v13", [PARIS, ("now", "{}")])
    functions = [tool["function"] for tool in TOOLS]
    (choice,) = (await ask(reply, "mistral-v13", functions=functions, function_call="auto")).json()["choices"]
    assert choice["message"] == {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "function_call": {"name": "get_weather", "arguments": '{"city": "Pärîs"}'},
    }
    assert choice["finish_reason"] == "function_call"


# Reasoning.


async def test_reasoning_is_separate_and_counted() -> None:
    reply = "<think>\nHm, ö.\n</think>\n\nYes."
    chat = FakeChat(format_of(None, THINK))
    body = (await ask(reply, chat)).json()
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Yes.",
        "refusal": None,
        "reasoning_content": "Hm, ö.",
    }
    assert body["choices"][0]["finish_reason"] == "stop"
    # The fake engine's tokens are bytes; the empty line after the end is not counted.
    reasoning = "<think>\nHm, ö.\n</think>"
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": len(reasoning.encode())}
    chunks = events_of((await ask(reply, chat, stream=True, stream_options={"include_usage": True})).text)
    assert chunks[-1]["usage"] == body["usage"]


async def test_prompts_may_begin_the_reasoning() -> None:
    chat = FakeChat(format_of(None, THINK), in_reasoning=True)
    (choice,) = (await ask("Hm.\n</think>\n\nYes.", chat)).json()["choices"]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Hm.", "Yes.")


async def test_reasoning_effort_is_a_variable_of_the_template() -> None:
    for variables, effort, expected in (
        (("reasoning_effort",), "high", {"reasoning_effort": "high"}),
        (("reasoning_effort", "enable_thinking"), "none", {"reasoning_effort": "none"}),
        (("enable_thinking",), "none", {"enable_thinking": False}),
        (("enable_thinking",), "low", {"enable_thinking": True}),
        ((), "none", {}),
        ((), None, {}),
    ):
        chat = FakeChat(variables=variables)
        assert (await ask("x", chat, reasoning_effort=effort)).status_code == 200
        assert {k: v for k, v in chat.asked[0].items() if k not in ("messages", "tools")} == expected
    for chat, effort in (
        (FakeChat(), "low"),
        (FakeChat(format_of(None, THINK)), "none"),
        (FakeChat(variables=("reasoning_effort",)), "very"),
    ):
        error = (await ask("x", chat, reasoning_effort=effort)).json()["error"]
        assert (error["param"], error["type"]) == ("reasoning_effort", "invalid_request_error")


# Log-probabilities.


async def test_log_probabilities_are_those_of_the_content() -> None:
    reply = '<think>ab</think>Öx <y\n<tool_call>{"name": "now", "arguments": {}}</tool_call>'
    chat = FakeChat(format_of("hermes", THINK))
    body = {"tools": TOOLS, "logprobs": True, "top_logprobs": 1}
    (choice,) = (await ask(reply, chat, **body)).json()["choices"]
    entries = choice["logprobs"]["content"]
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "Öx <y"
    chunks = events_of((await ask(reply, chat, stream=True, **body)).text)
    streamed = [
        entry
        for chunk in chunks
        for choice in chunk["choices"]
        if choice["logprobs"]
        for entry in choice["logprobs"]["content"]
    ]
    assert streamed == entries
    text = "<tool_call>none"
    (choice,) = (await ask(text, "hermes", **body)).json()["choices"]
    assert "".join(entry["token"] for entry in choice["logprobs"]["content"]) == text


# What ends a completion.


async def test_a_completion_that_is_cut_off() -> None:
    reply = reply_of(written("hermes", [PARIS]))
    cut = reply.index("city") + 2
    (choice,) = (await ask(reply, tools=TOOLS, max_tokens=cut)).json()["choices"]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"ci'
    (choice,) = (await ask(reply, tools=TOOLS, stop="city")).json()["choices"]
    assert choice["finish_reason"] == "stop"
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"'
    (choice,) = (await ask(reply, tools=TOOLS, max_tokens=5)).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (reply[:5], "length")


# Which tools the model sees and may call.


async def test_the_model_sees_the_tools() -> None:
    chat = FakeChat(format_of("hermes"))
    await ask("x", chat, tools=TOOLS)
    shown = chat.asked[0]["tools"]
    assert [tool["function"]["name"] for tool in shown] == ["get_weather", "now"]
    assert shown[0]["function"] == WEATHER["function"]
    assert json.dumps(shown[0])  # plain values
    for body in ({"tools": []}, {"tools": None}, {"tools": TOOLS, "tool_choice": "none"}, {}):
        chat = FakeChat(format_of("hermes"))
        await ask("x", chat, **body)
        assert chat.asked[0]["tools"] is None


async def test_only_calls_that_are_allowed_are_calls() -> None:
    reply = reply_of(written("hermes", [PARIS]))
    allowed = {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [_named("now")]}}
    for choice, called in (
        ("auto", True),
        ("required", True),
        ("none", False),
        (allowed, False),
        (_named("now"), False),
    ):
        (found,) = (await ask(reply, tools=TOOLS, tool_choice=choice)).json()["choices"]
        assert ("tool_calls" in found["message"]) == called, choice
        if not called:
            assert found["message"]["content"] == reply


def _named(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


async def test_the_engine_reports_the_tokens_of_the_format() -> None:
    for chat, body, expected in (
        (FakeChat(format_of("mistral-v13")), {"tools": TOOLS}, {9, 20, 21}),
        (FakeChat(format_of("mistral-v13")), {}, set()),
        (FakeChat(format_of("mistral-v13", reasoning_format("[THINK]", "[/THINK]", MISTRAL))), {}, {9, 20, 21, 22, 23}),
        (FakeChat(format_of("hermes", THINK)), {"tools": TOOLS}, set()),
    ):
        engine = FakeEngine("x")
        await ask("", chat, engine=engine, **body)
        assert engine.submitted[0].reported_tokens == expected


async def test_a_model_that_knows_no_tools_refuses_them() -> None:
    for chat, told in (
        (FakeChat(format_of("hermes"), knows_tools=False), "--chat-template"),
        (FakeChat(), "--tool-format"),
    ):
        engine = FakeEngine()
        response = await ask("", chat, engine=engine, tools=TOOLS)
        error = response.json()["error"]
        assert (response.status_code, error["param"], error["code"]) == (400, "tools", "unsupported_parameter")
        assert told in error["message"]
        assert engine.submitted == []
        assert (await ask("x", chat, tools=TOOLS, tool_choice="none")).status_code == 200


# The history.


async def test_calls_and_results_are_rendered() -> None:
    chat = FakeChat(format_of("hermes"))
    calls = [
        {"id": "a", "type": "function", "index": 0, "function": {"name": "now", "arguments": "{}"}},
        {"id": "b", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}},
    ]
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "Hm"},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "12:00"}]},
        {"role": "tool", "tool_call_id": "b", "content": "20", "name": "get_weather"},
    ]
    response = await ask("x", chat, messages=messages, tools=TOOLS)
    assert response.status_code == 200
    assert "x-ignored-fields" not in response.headers
    first, second = chat.asked[0]["messages"][1]["tool_calls"]
    assert first == {"id": "a", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    assert second["function"]["arguments"] == {"city": "Rome"}
    assert chat.asked[0]["messages"][1]["reasoning_content"] == "Hm"
    assert chat.asked[0]["messages"][2] == {"role": "tool", "tool_call_id": "a", "content": "12:00"}


async def test_calls_and_results_in_the_older_form_are_rendered() -> None:
    chat = FakeChat(format_of("hermes"))
    messages = [
        *MESSAGES,
        {"role": "assistant", "content": None, "function_call": {"name": "now", "arguments": "{}"}},
        {"role": "function", "name": "now", "content": "12:00"},
    ]
    assert (await ask("x", chat, messages=messages)).status_code == 200
    _, call, result = chat.asked[0]["messages"]
    assert call["tool_calls"][0]["function"] == {"name": "now", "arguments": "{}"}
    assert (result["role"], result["tool_call_id"]) == ("tool", call["tool_calls"][0]["id"])


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "tool", "content": "x"}, "messages[1].tool_call_id"),
        ({"role": "tool", "tool_call_id": "a"}, "messages[1].content"),
        ({"role": "user", "content": "x", "tool_calls": [_named("now")]}, "messages[1].tool_calls"),
        ({"role": "user", "content": "x", "function_call": {"name": "now"}}, "messages[1].function_call"),
        ({"role": "assistant", "tool_calls": [{"type": "custom", **_named("now")}]}, None),
        ({"role": "assistant", "tool_calls": [_named("now") | {"type": "custom"}]}, "messages[1].tool_calls[0].type"),
        ({"role": "assistant", "tool_calls": [{"id": "a"}]}, "messages[1].tool_calls[0]"),
        ({"role": "function", "content": "x"}, "messages[1].name"),
        ({"role": "function", "content": "x", "name": "now"}, "messages[1].name"),
        (
            {"role": "assistant", "tool_calls": [_named("now")], "function_call": {"name": "now"}},
            "messages[1].function_call",
        ),
    ],
)
async def test_messages_that_are_refused(message: dict[str, Any], param: str | None) -> None:
    response = await ask("x", messages=[*MESSAGES, message], tools=TOOLS)
    if param is None:
        assert response.status_code == 200
    else:
        assert (response.status_code, response.json()["error"]["param"]) == (400, param)
