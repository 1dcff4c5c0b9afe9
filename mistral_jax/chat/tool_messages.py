"""Tools, calls and their results in a conversation, brought to one form before they are rendered."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn, cast

from mistral_jax.chat.errors import ConversationError
from mistral_jax.chat.messages import Message
from mistral_jax.chat.output.call_ids import short_call_id
from mistral_jax.chat.output.formats import CallShape, ToolFormat


def plain_tools(tools: Sequence[Any]) -> list[Message]:
    """Tools as chat templates expect them: every function has parameters. `strict`, which models have not seen, and
    null are left out.

    Args:
      tools: OpenAI's descriptions, in plain values.

    Raises:
      ConversationError: one of them is not a function with a name.
    """
    listed: list[Message] = []
    for i, tool in enumerate(tools):
        function = cast("Message", tool).get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(cast("Message", function).get("name"), str):
            raise ConversationError(f"tools[{i}]: expected an object with a function that has a name.")
        described = {
            key: value for key, value in cast("Message", function).items() if value is not None and key != "strict"
        }
        described.setdefault("parameters", {"type": "object", "properties": {}})
        listed.append({**cast("Message", tool), "type": "function", "function": described})
    return listed


def normal_calls(messages: list[Message], tool_format: ToolFormat | None) -> list[Message]:
    """The messages with calls and results as templates expect them; changes them in place.

    - Arguments, which OpenAI's clients send as JSON text, are objects.
    - Results have the name of their tool.
    - Where the model knows no ids but those of nine characters, others are replaced (see `output.call_ids`), and a
      result must have the id of an earlier call.
    - Where results are told apart by their order, they are in the order of the calls.

    Raises:
      ConversationError: a call or result has another form; arguments are not a JSON object; or a result has no call.
    """
    short = tool_format is not None and tool_format.short_ids
    names: dict[Any, str] = {}
    for i, message in enumerate(messages):
        listed = message.get("tool_calls")
        if listed:
            where = f"messages[{i}].tool_calls"
            if not isinstance(listed, list):
                _refuse(f"{where}: expected a list of calls.")
            for j, call in enumerate(cast("list[Any]", listed)):
                name = _normal_call(call, f"{where}[{j}]", short=short)
                names[call.get("id")] = name
        if message.get("role") == "tool":
            _normal_result(message, f"messages[{i}]", names, short=short)
    if tool_format is not None and tool_format.shape is CallShape.NAMED:
        _sort_results(messages)
    return messages


def _normal_call(call: Any, where: str, *, short: bool) -> str:
    """Brings a call to its form; returns its name."""
    function = cast("Message", call).get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(cast("Message", function).get("name"), str):
        _refuse(f"{where}: expected an object with a function that has a name.")
    called = cast("Message", function)
    called["arguments"] = _arguments(called.get("arguments"), f"{where}.function.arguments")
    if short and isinstance(call_id := call.get("id"), str) and call_id != "null":
        call["id"] = short_call_id(call_id)
    return called["name"]


def _arguments(given: Any, where: str) -> Message:
    value = given
    if isinstance(given, str):
        try:
            value = json.loads(given or "{}", parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
            raise ConversationError(f"{where}: expected the JSON text of an object ({reason[:100]}).") from error
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(f"{where}: expected the JSON text of an object.")
    return cast("Message", value)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _normal_result(message: Message, where: str, names: dict[Any, str], *, short: bool) -> None:
    call_id = message.get("tool_call_id")
    if short:
        if not isinstance(call_id, str):
            _refuse(f"{where}: a tool's message has no tool_call_id.")
        message["tool_call_id"] = short_call_id(call_id)
        if message["tool_call_id"] not in names:
            _refuse(f"{where}.tool_call_id: no call before it has the id {call_id[:50]!r}.")
    if message.get("name") is None and (name := names.get(message.get("tool_call_id"))) is not None:
        message["name"] = name


def _sort_results(messages: list[Message]) -> None:
    """Sorts each run of results by the calls of the message with calls before it; others stay behind them."""
    order: dict[Any, int] = {}
    start = 0
    while start < len(messages):
        message = messages[start]
        if message.get("role") != "tool":
            if message.get("role") == "assistant" and message.get("tool_calls"):
                order = {call.get("id"): i for i, call in enumerate(cast("list[Message]", message["tool_calls"]))}
            start += 1
            continue
        end = start
        while end < len(messages) and messages[end].get("role") == "tool":
            end += 1
        messages[start:end] = sorted(messages[start:end], key=lambda m: order.get(m.get("tool_call_id"), len(order)))
        start = end


def _refuse(reason: str) -> NoReturn:
    raise ConversationError(reason)
