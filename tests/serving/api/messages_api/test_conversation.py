"""From messages of Anthropic's API to those of a chat."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from serving.api.errors import InvalidRequestError
from serving.api.messages_api.conversation import messages_of
from serving.api.messages_api.request import MessageParam
from tests.cpu_time import cpu_seconds_at_most


def chat(*messages: Any, system: str | None = None) -> list[dict[str, Any]]:
    """The messages, without what is absent."""
    made = msgspec.to_builtins(messages_of(msgspec.convert(messages, list[MessageParam]), system))
    return [
        {name: value for name, value in message.items() if value is not None and name != "function_call"}
        for message in made
    ]


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if isinstance(content[0], str) else list(content)}


def assistant(*content: Any) -> dict[str, Any]:
    return {**user(*content), "role": "assistant"}


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def use(id: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": id, "name": "now", "input": {"a": 1}}


def result(id: str, **fields: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": id, **fields}


def test_texts() -> None:
    assert chat(user("hi"), system="Be brief.") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]
    assert chat(user(text("a"), text("b"))) == [{"role": "user", "content": "a\nb"}]


def test_messages_of_one_role_after_each_other_are_one() -> None:
    assert chat(user("a"), user("b"), assistant("c"), assistant("d"), user("e")) == [
        {"role": "user", "content": "a\nb"},
        {"role": "assistant", "content": "c\nd"},
        {"role": "user", "content": "e"},
    ]


def test_tools_and_thinking() -> None:
    thought = {"type": "thinking", "thinking": "Hm", "signature": "x"}
    made = chat(
        user("hi"),
        assistant(thought, text("So:"), use("a"), use("b")),
        user(result("a", content="12:00", is_error=False), result("b", content=[text("x"), text("y")]), text("Go on.")),
        assistant(use("c")),
        user(result("c")),
    )
    call = {"type": "function", "function": {"name": "now", "arguments": {"a": 1}}}
    assert made == [
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "So:",
            "reasoning_content": "Hm",
            "tool_calls": [{**call, "id": "a"}, {**call, "id": "b"}],
        },
        {"role": "tool", "content": "12:00", "tool_call_id": "a"},
        {"role": "tool", "content": "x\ny", "tool_call_id": "b"},
        {"role": "user", "content": "Go on."},
        {"role": "assistant", "tool_calls": [{**call, "id": "c"}]},
        {"role": "tool", "content": "", "tool_call_id": "c"},
    ]


@pytest.mark.parametrize(
    ("message", "param", "told"),
    [
        ({"role": "tool", "content": "x"}, "messages[1].role", "'tool' is not known"),
        ({"role": "user", "content": []}, "messages[1].content", "at least one block"),
        (user({"type": "image", "source": {}}), "messages[1].content[0].type", "'image' is not supported"),
        (user(text("a"), {"type": "document"}), "messages[1].content[1].type", "'document' is not supported"),
        (assistant({"type": "redacted_thinking", "data": ""}), "messages[1].content[0].type", "'redacted_thinking'"),
        (user({"type": "text"}), "messages[1].content[0].text", "expected a value"),
        (user(use("z")), "messages[1].content[0].type", "only messages of the role assistant"),
        (assistant(result("a")), "messages[1].content[0].type", "only messages of the role user"),
        (user(result("z")), "messages[1].content[0].tool_use_id", "no tool_use before it has the id 'z'"),
        (user({"type": "tool_result"}), "messages[1].content[0].tool_use_id", "expected a value"),
        (
            user(result("a", content=[{"type": "image"}])),
            "messages[1].content[0].content[0].type",
            "'image' is not supported",
        ),
        (assistant({**use("b"), "input": None}), "messages[1].content[0].input", "expected a value"),
    ],
)
def test_messages_that_are_refused(message: dict[str, Any], param: str, told: str) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        chat(assistant(use("a")), message)
    assert refused.value.param == param
    assert told in refused.value.message


def test_no_messages_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="at least one message"):
        chat()


def test_long_conversations_take_time_in_proportion() -> None:
    uses = [use(str(i)) for i in range(20_000)]
    results = [result(str(i)) for i in range(20_000)]
    texts = [text("x" * 100)] * 20_000
    with cpu_seconds_at_most(10.0):
        assert len(chat(assistant(*uses), user(*results, *texts))) == 1 + 20_000 + 1
