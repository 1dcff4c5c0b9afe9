"""From items of an input to messages of a chat."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from serving.api.errors import InvalidRequestError
from serving.api.responses_api.input_items import messages_of
from serving.api.responses_api.request import InputItem
from tests.cpu_time import cpu_seconds_at_most


def chat(items: Any, instructions: str | None = None) -> list[dict[str, Any]]:
    """The messages, without what is absent."""
    given = items if isinstance(items, str) else msgspec.convert(items, list[InputItem])
    made = msgspec.to_builtins(messages_of(given, instructions))
    return [
        {name: value for name, value in message.items() if value is not None and name != "function_call"}
        for message in made
    ]


def call(call_id: str, arguments: str = "{}") -> dict[str, Any]:
    return {"type": "function_call", "id": "fc_1", "call_id": call_id, "name": "now", "arguments": arguments}


def called(*call_ids: str) -> list[dict[str, Any]]:
    return [{"function": {"name": "now", "arguments": {}}, "id": call_id, "type": "function"} for call_id in call_ids]


def text(content: str) -> dict[str, Any]:
    part = {"type": "output_text", "text": content, "annotations": [], "logprobs": []}
    return {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [part]}


def thought(content: str) -> dict[str, Any]:
    return {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": content}]}


def test_a_text_is_a_users_message() -> None:
    assert chat("hi") == [{"role": "user", "content": "hi"}]
    assert chat("hi", "Be brief.") == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}]


def test_messages() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    items = [{"role": "user", "content": parts}, {"role": "assistant", "content": "c", "type": "message"}]
    assert chat(items) == [{"role": "user", "content": "a\nb"}, {"role": "assistant", "content": "c"}]


def test_instructions_and_the_system_messages_that_begin_the_input_are_one() -> None:
    items = [
        {"role": "developer", "content": "b"},
        {"role": "system", "content": "c"},
        {"role": "user", "content": "hi"},
        {"role": "developer", "content": "d"},
    ]
    assert chat(items, "a") == [
        {"role": "system", "content": "a\n\nb\n\nc"},
        {"role": "user", "content": "hi"},
        {"role": "system", "content": "d"},
    ]


def test_a_turn_of_the_model_is_one_message() -> None:
    output = {"type": "function_call_output", "call_id": "a", "output": [{"type": "input_text", "text": "12:00"}]}
    items = [
        {"role": "user", "content": "hi"},
        thought("Hm"),
        text("So:"),
        call("a"),
        call("b"),
        output,
        {**output, "call_id": "b", "output": "13:00"},
        thought("Ah"),
        call("c"),
        {**output, "call_id": "c"},
        text("Noon."),
    ]
    assert chat(items)[1:] == [
        {"role": "assistant", "content": "So:", "reasoning_content": "Hm", "tool_calls": called("a", "b")},
        {"role": "tool", "content": "12:00", "tool_call_id": "a"},
        {"role": "tool", "content": "13:00", "tool_call_id": "b"},
        {"role": "assistant", "reasoning_content": "Ah", "tool_calls": called("c")},
        {"role": "tool", "content": "12:00", "tool_call_id": "c"},
        {"role": "assistant", "content": "Noon."},
    ]


def test_two_texts_of_the_model_are_two_messages() -> None:
    assert chat([text("a"), text("b")]) == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert chat([call("a"), text("b")]) == [
        {"role": "assistant", "tool_calls": called("a")},
        {"role": "assistant", "content": "b"},
    ]


def test_arguments_are_objects() -> None:
    (message,) = chat([call("a", '{"city": "Pärîs"}')])
    assert message["tool_calls"][0]["function"]["arguments"] == {"city": "Pärîs"}
    (message,) = chat([call("a", "")])
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize(
    ("item", "param", "told"),
    [
        ({"role": "tool", "content": "x"}, "input[1].role", "'tool' is not known"),
        ({"role": "user"}, "input[1].content", "expected a value"),
        ({"type": "message", "content": "x"}, "input[1].role", "expected one of user"),
        ({"id": "msg_1"}, "input[1].role", "references to stored items"),
        ({"type": "item_reference", "id": "msg_1"}, "input[1].type", "stores no items"),
        ({"type": "computer_call"}, "input[1].type", "'computer_call' is not supported"),
        ({"type": "custom_tool_call"}, "input[1].type", "'custom_tool_call' is not supported"),
        (
            {"role": "user", "content": [{"type": "input_image", "image_url": "https://a/b"}]},
            "input[1].content[0]",
            "'input_image' is not supported",
        ),
        ({"role": "assistant", "content": [{"type": "refusal"}]}, "input[1].content[0]", "'refusal'"),
        ({"type": "function_call", "name": "a", "arguments": "{}"}, "input[1].call_id", "expected a value"),
        (call("a", "[]"), "input[1].arguments", "JSON text of an object"),
        (call("a", "{"), "input[1].arguments", "JSON text of an object"),
        (call("a", '{"a":' * 400), "input[1].arguments", "JSON text of an object"),
        ({"type": "function_call_output", "call_id": "z", "output": "x"}, "input[1].call_id", "no function_call"),
        ({"type": "function_call_output", "call_id": "b"}, "input[1].call_id", "no function_call before it"),
        ({"type": "reasoning", "encrypted_content": "x"}, "input[1].encrypted_content", "cannot read it"),
        ({"type": "reasoning", "content": [{"type": "x"}]}, "input[1].content[0]", "reasoning_text"),
    ],
)
def test_items_that_are_refused(item: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        chat([call("a"), item])
    assert refused.value.param == param
    assert told in refused.value.message


def test_an_empty_input_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least one item"):
        chat([], "x")


def test_the_output_of_a_response_is_a_valid_input() -> None:
    output = {"type": "function_call_output", "call_id": "a", "output": ""}
    assert chat([thought(""), call("a"), output])[0]["tool_calls"] == called("a")


def test_long_inputs_take_time_in_proportion() -> None:
    items = [call(str(i)) for i in range(20_000)]
    items += [{"type": "function_call_output", "call_id": str(i), "output": "x"} for i in range(20_000)]
    items += [{"role": "system", "content": "x"}] * 20_000
    with cpu_seconds_at_most(10.0):
        assert len(chat(items)) == 1 + 20_000 + 20_000
