"""POST /v1/responses: whole responses, and their streams, which the openai package's models of them must accept."""

from __future__ import annotations

from typing import Any

import msgspec
import pydantic
import pytest
from openai.types.responses import Response, ResponseStreamEvent

from mistral_jax.chat.output.formats import OutputFormat
from serving.api.responses_api.events import ResponseEvent
from serving.api.responses_api.response import ModelResponse
from tests.mistral_jax.chat.output.completions import MISTRAL, Items, written
from tests.serving.api.controllers.test_tools import PARIS, THINK, format_of, reply_of
from tests.serving.fakes import FakeChat, FakeEngine, fake_service
from tests.serving.harness import named_events_of, running

pytestmark = pytest.mark.anyio

PATH = "/v1/responses"
WEATHER = {
    "type": "function",
    "name": "get_weather",
    "description": "Now.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": None,
}
NOW = {"type": "function", "name": "now", "description": None, "parameters": None, "strict": None}
TOOLS = [WEATHER, NOW]
MODEL_OF_EVENTS: Any = pydantic.TypeAdapter(ResponseStreamEvent)
LOGPROBS = {"include": ["message.output_text.logprobs"], "top_logprobs": 1}


async def ask(
    reply: str | Items = "Hello, wörld! 🙂",
    output: OutputFormat | FakeChat | None = None,
    *,
    engine: FakeEngine | None = None,
    **body: Any,
) -> Any:
    engine = engine or FakeEngine(reply if isinstance(reply, str) else reply_of(reply))
    chat = output if isinstance(output, FakeChat) else FakeChat(output)
    async with running(service=fake_service(engine, chat=chat)) as client:
        return await client.post(PATH, json={"input": "hi", **body})


def checked(payload: Any) -> Any:
    """A response that both our own schema and the package's model accept."""
    msgspec.convert(payload, ModelResponse)
    Response.model_validate(payload)
    return payload


async def streamed(*args: Any, **body: Any) -> list[Any]:
    """The events of a stream, which are numbered and have both their schemas."""
    events = named_events_of((await ask(*args, stream=True, **body)).text)
    for number, event in enumerate(events):
        assert event["sequence_number"] == number
        msgspec.convert(event, ResponseEvent)
        MODEL_OF_EVENTS.validate_python(event)
    return events


def without_ids(response: dict[str, Any]) -> dict[str, Any]:
    """What does not differ between two calls."""
    left_out = ("id", "created_at", "completed_at", "timings")
    kept = {name: value for name, value in response.items() if name not in left_out}
    items = [{name: value for name, value in item.items() if name not in ("id", "call_id")} for item in kept["output"]]
    return {**kept, "output": items}


async def test_a_text() -> None:
    body = checked((await ask(instructions="Be brief.", metadata={"a": "b"}, seed=1)).json())
    ids = body.pop("id"), body["output"][0].pop("id")
    assert [each.split("_")[0] for each in ids] == ["resp", "msg"]
    assert body.pop("timings")["predicted_n"] == 20
    assert body.pop("completed_at") >= body.pop("created_at")
    assert body == {
        "object": "response",
        "status": "completed",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": "acme/tiny-mistral",
        "output": [
            {
                "type": "message",
                "status": "completed",
                "role": "assistant",
                "content": [{"type": "output_text", "text": "Hello, wörld! 🙂", "annotations": [], "logprobs": []}],
            }
        ],
        "usage": {
            "input_tokens": 26,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": 20,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 46,
        },
        "store": False,
        "instructions": "Be brief.",
        "max_output_tokens": None,
        "max_tool_calls": None,
        "metadata": {"a": "b"},
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "prompt_cache_key": None,
        "prompt_cache_retention": None,
        "reasoning": {"effort": None, "summary": None},
        "safety_identifier": None,
        "service_tier": "default",
        "temperature": 0.25,
        "text": {"format": {"type": "text"}, "verbosity": "medium"},
        "tool_choice": "auto",
        "tools": [],
        "top_logprobs": 0,
        "top_p": 1.0,
        "truncation": "disabled",
        "user": None,
    }


async def test_the_settings_of_the_request_are_returned() -> None:
    sent: dict[str, Any] = {
        "max_output_tokens": 50,
        "max_tool_calls": 3,
        "parallel_tool_calls": False,
        "prompt_cache_key": "k",
        "prompt_cache_retention": "24h",
        "safety_identifier": "s",
        "temperature": 0.5,
        "text": {
            "format": {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": False},
            "verbosity": "low",
        },
        "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "now"}]},
        "tools": TOOLS,
        "top_logprobs": 2,
        "top_p": 0.75,
        "truncation": "auto",
        "user": "u",
        "reasoning": {"effort": "low", "summary": "auto"},
    }
    chat = FakeChat(format_of("hermes"), variables=("reasoning_effort",))
    response = await ask("{}", chat, store=True, service_tier="flex", **sent)
    body = checked(response.json())
    assert {name: body[name] for name in sent} == sent
    assert (body["store"], body["service_tier"]) == (False, "default")
    assert "x-ignored-fields" not in response.headers


async def test_a_call_after_reasoning_and_a_text() -> None:
    reply = ["<think>\nHm\n</think>\n\nSo: ", *written("hermes", [PARIS, ("now", "{}")])]
    body = checked((await ask(reply, format_of("hermes", THINK), tools=TOOLS, stop=[])).json())
    assert body["status"] == "completed"
    reasoning, message, *calls = body["output"]
    assert (reasoning["type"], reasoning["summary"], reasoning["encrypted_content"]) == ("reasoning", [], None)
    assert reasoning["content"] == [{"type": "reasoning_text", "text": "Hm"}]
    assert message["content"][0]["text"] == "So:"
    assert [(call["type"], call["name"], call["arguments"], call["status"]) for call in calls] == [
        ("function_call", "get_weather", PARIS[1], "completed"),
        ("function_call", "now", "{}", "completed"),
    ]
    assert all(call["call_id"].startswith("call_") and call["id"].startswith("fc_") for call in calls)
    assert body["usage"]["output_tokens_details"]["reasoning_tokens"] == len("<think>\nHm\n</think>")


REPLIES: list[tuple[OutputFormat, Items]] = [
    (OutputFormat(), ["Hi 🙂."]),
    (OutputFormat(), [""]),
    (format_of("hermes"), ["Well. ", *written("hermes", [PARIS, ("now", "{}")]), "\n"]),
    (format_of("hermes", THINK), ["<think>\nHm\n</think>\n\nSo: ", *written("hermes", [PARIS])]),
    (format_of("hermes", THINK), ["<think>Hm"]),
    (format_of("hermes"), ['<tool_call>{"name": "nobody", "arguments": {}}</tool_call>']),
    (format_of("mistral-v13"), [*written("mistral-v13", [PARIS] * 2)]),
    (format_of("llama3"), ['{"name": "now", "parameters": {}}']),
]


@pytest.mark.parametrize("limit", [None, 15, 60])
@pytest.mark.parametrize(("output", "items"), REPLIES)
async def test_a_stream_ends_with_the_whole_response(output: OutputFormat, items: Items, limit: int | None) -> None:
    body = {"tools": TOOLS if output.tools else [], "max_output_tokens": limit, **LOGPROBS}
    whole = checked((await ask(items, output, **body)).json())
    events = await streamed(items, output, **body)
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    assert all(event["response"]["output"] == [] and event["response"]["usage"] is None for event in events[:2])
    last = events[-1]
    assert last["type"] == f"response.{whole['status']}"
    assert without_ids(last["response"]) == without_ids(whole)
    assert last["response"] == checked(last["response"])
    assert [event["item"] for event in events if event["type"] == "response.output_item.done"] == (
        last["response"]["output"]
    )


@pytest.mark.parametrize(("output", "items"), REPLIES)
async def test_the_events_of_each_item_are_in_order_and_add_up(output: OutputFormat, items: Items) -> None:
    events = (await streamed(items, output, tools=TOOLS if output.tools else [], **LOGPROBS))[2:-1]
    (at,) = {event["output_index"] for event in events[:1]} or {0}
    assert at == 0
    for index in sorted({event["output_index"] for event in events}):
        own = [event for event in events if event["output_index"] == index]
        assert own == events[events.index(own[0]) : events.index(own[0]) + len(own)]  # one item after the other
        item = own[-1]["item"]
        assert {event["item_id"] for event in own[1:-1]} == {item["id"]} == {own[0]["item"]["id"]}
        assert own[0]["item"]["status"] == "in_progress"
        kinds = [event["type"].removeprefix("response.") for event in own]
        deltas = [event for event in own if event["type"].endswith(".delta")]
        added = "".join(event["delta"] for event in deltas)
        if item["type"] == "function_call":
            middle = ["function_call_arguments.delta"] * len(deltas)
            assert kinds == ["output_item.added", *middle, "function_call_arguments.done", "output_item.done"]
            assert added == own[-2]["arguments"] == item["arguments"]
            assert own[0]["item"]["arguments"] == ""
            continue
        name = "output_text" if item["type"] == "message" else "reasoning_text"
        parts = [f"{name}.delta"] * len(deltas), [f"{name}.done", "content_part.done", "output_item.done"]
        assert kinds == ["output_item.added", "content_part.added", *parts[0], *parts[1]]
        assert added == own[-3]["text"] == own[-2]["part"]["text"] == item["content"][0]["text"]
        if item["type"] == "message":
            told = [entry for event in deltas for entry in event["logprobs"]]
            assert told == own[-3]["logprobs"] == own[-2]["part"]["logprobs"] == item["content"][0]["logprobs"]


async def test_log_probabilities_are_those_of_the_text() -> None:
    reply = "<think>ab</think>Öx"
    for wanted, top in (({"include": LOGPROBS["include"]}, 0), ({"top_logprobs": 2}, 2)):
        body = checked((await ask(reply, format_of(None, THINK), **wanted)).json())
        entries = body["output"][1]["content"][0]["logprobs"]
        assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == "Öx"
        assert {len(entry["top_logprobs"]) for entry in entries} == {top}
        assert body["top_logprobs"] == top


# How a response ends.


async def test_a_response_that_is_cut_off_is_incomplete() -> None:
    reply = reply_of(written("hermes", [PARIS]))
    cut = reply.index("city") + 2
    body = checked((await ask(reply, format_of("hermes"), tools=TOOLS, max_output_tokens=cut)).json())
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert body["completed_at"] is None
    (call,) = body["output"]
    assert (call["status"], call["arguments"]) == ("incomplete", '{"ci')
    body = checked((await ask("abc", max_output_tokens=2)).json())
    assert (body["output"][0]["status"], body["output"][0]["content"][0]["text"]) == ("incomplete", "ab")


async def test_stop_strings_complete_it() -> None:
    body = checked((await ask("one, two", stop=", ")).json())
    assert (body["status"], body["output"][0]["content"][0]["text"]) == ("completed", "one")
    reply = reply_of(written("hermes", [PARIS]))
    body = checked((await ask(reply, format_of("hermes"), tools=TOOLS, stop="city")).json())
    assert (body["status"], body["output"][0]["status"]) == ("completed", "incomplete")


async def test_a_stream_that_fails_says_so() -> None:
    events = await streamed(engine=FakeEngine("abcdef", fail_after=3))
    error, failed = events[-2:]
    assert (error["type"], error["code"]) == ("error", "generation_failed")
    assert "NaN in weights.bin" in error["message"]
    response = checked(failed["response"])
    assert (failed["type"], response["status"]) == ("response.failed", "failed")
    assert response["error"] == {"code": "server_error", "message": error["message"]}
    (item,) = response["output"]
    assert (item["status"], item["content"][0]["text"]) == ("incomplete", "abc")
    assert (await ask(engine=FakeEngine("abcdef", fail_after=3))).status_code == 500


async def test_keep_alives_are_comments() -> None:
    engine = FakeEngine("ab", delay=0.05)
    async with running(engine, keep_alive=0.01) as client:
        text = (await client.post(PATH, json={"input": "hi", "stream": True})).text
    assert ": keep-alive\n\n" in text
    assert named_events_of(text)[-1]["type"] == "response.completed"


async def test_the_adapter_fields_are_extensions() -> None:
    assert (await ask(adapters={})).json()["error"]["param"] == "adapters"
    assert (await ask(xlora={"scalings": "full"})).json()["error"]["param"] == "xlora.scalings"
    engine = FakeEngine()
    await ask(engine=engine, seed=3, top_k=5, min_p=0.1, min_tokens=2)
    params = engine.submitted[0].params
    assert (params.seed, params.top_k, params.min_p, params.min_tokens) == (3, 5, 0.1, 2)


# Structured output.


async def test_texts_match_a_schema() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    named = {"type": "json_schema", "name": "n", "strict": True}
    for wanted, constrained in (({**named, "schema": schema}, True), ({"type": "json_object"}, True), (None, False)):
        engine = FakeEngine("{}")
        assert (await ask(engine=engine, text={"format": wanted})).status_code == 200
        assert (engine.submitted[0].constraint is not None) is constrained
    error = (await ask(text={"format": {**named, "schema": {"type": "wrong"}}})).json()["error"]
    assert (error["param"], error["code"]) == ("text.format.schema", "invalid_grammar")


# The prompt.


async def test_tokens_of_the_input_are_counted() -> None:
    chat = FakeChat(format_of("hermes"))
    async with running(service=fake_service(chat=chat)) as client:
        for body in (
            {"input": "hi"},
            {"input": [{"role": "user", "content": "hi"}], "instructions": "Be brief.", "tools": TOOLS},
            {"input": "x" * 1000},
        ):
            counted = (await client.post(f"{PATH}/input_tokens", json=body)).json()
            assert counted["object"] == "response.input_tokens"
            if len(body["input"]) < 1000:
                response = (await client.post(PATH, json=body)).json()
                assert counted["input_tokens"] == response["usage"]["input_tokens"]
            else:
                assert counted["input_tokens"] == 1 + len("[user]") + 1000
        error = (await client.post(f"{PATH}/input_tokens", json={"input": "hi", "model": "other"})).json()["error"]
        assert error["code"] == "model_not_found"


async def test_truncation() -> None:
    long = "x" * 400
    error = (await ask(input=long)).json()["error"]
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
    assert "in the input" in error["message"]
    response = await ask(input=long, truncation="auto", max_output_tokens=20)
    assert response.json()["usage"]["input_tokens"] == 256 - 20


@pytest.mark.parametrize(("control", "text"), [(22, "[THINK]"), (9, "[TOOL_CALLS]")])
async def test_the_engine_reports_the_tokens_of_the_format(control: int, text: str) -> None:
    engine = FakeEngine("x")
    await ask(output=format_of("mistral-v13"), engine=engine, tools=TOOLS)
    assert (control in engine.submitted[0].reported_tokens) == (text == "[TOOL_CALLS]")
    assert MISTRAL[text] == control
