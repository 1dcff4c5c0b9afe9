"""From the messages of a request to those that chat formats render."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from serving.api.errors import InvalidRequestError
from serving.api.schemas import ChatMessage, ContentPart
from serving.api.schemas.tools import MessageFunction, MessageToolCall

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


def chat_messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    """The messages in one form: developers are system, texts are joined, and the older `function_call` and role
    `function` are calls and results of tools.

    Raises:
      InvalidRequestError: there are none, or one is invalid; the error names it.
    """
    if not messages:
        raise InvalidRequestError("messages: expected at least one message", param="messages")
    rendered = [_message(f"messages[{index}]", message) for index, message in enumerate(messages)]
    _name_older_calls(messages, rendered)
    return rendered


def _message(where: str, message: ChatMessage) -> dict[str, Any]:
    role = message.role
    if role not in ROLES:
        raise InvalidRequestError(
            f"{where}.role: {role[:50]!r} is not known; expected one of {', '.join(ROLES)}", param=f"{where}.role"
        )
    calls = message.tool_calls
    if (calls or message.function_call is not None) and role != "assistant":
        field = "tool_calls" if calls else "function_call"
        raise InvalidRequestError(
            f"{where}.{field}: only messages of the assistant have calls", param=f"{where}.{field}"
        )
    if calls and message.function_call is not None:
        raise InvalidRequestError(
            f"{where}.function_call: the message has tool_calls, too; send one of them", param=f"{where}.function_call"
        )
    if message.content is None and role != "assistant":
        raise InvalidRequestError(f"{where}.content: expected a text", param=f"{where}.content")
    if role == "tool" and message.tool_call_id is None:
        raise InvalidRequestError(
            f"{where}.tool_call_id: expected the id of the call that this is the result of",
            param=f"{where}.tool_call_id",
        )
    roles = {"developer": "system", "function": "tool"}
    rendered: dict[str, Any] = {"role": roles.get(role, role), "content": _content(where, message.content)}
    if calls:
        rendered["tool_calls"] = [_call(f"{where}.tool_calls[{i}]", call) for i, call in enumerate(calls)]
    optional = {
        "name": message.name,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
    }
    return rendered | {name: value for name, value in optional.items() if value is not None}


def _call(where: str, call: MessageToolCall) -> dict[str, Any]:
    if call.type not in (None, "function"):
        raise InvalidRequestError(
            f"{where}.type: {call.type[:50]!r} is not supported; expected `function`", param=f"{where}.type"
        )
    called: dict[str, Any] = {"type": "function", "function": _function(call.function)}
    return called if call.id is None else {"id": call.id, **called}


def _function(function: MessageFunction) -> dict[str, Any]:
    return {"name": function.name, "arguments": function.arguments}


def _name_older_calls(messages: Sequence[ChatMessage], rendered: list[dict[str, Any]]) -> None:
    """Gives calls and results in the older form, which have no ids, ids by their places."""
    last: dict[str, str] = {}
    for index, (message, made) in enumerate(zip(messages, rendered, strict=True)):
        if message.function_call is not None:
            call_id = f"function_call_{index}"
            last[message.function_call.name] = call_id
            function = _function(message.function_call)
            made["tool_calls"] = [{"id": call_id, "type": "function", "function": function}]
        elif message.role == "function":
            where = f"messages[{index}].name"
            if message.name is None:
                raise InvalidRequestError(f"{where}: expected the name of the function", param=where)
            if message.name not in last:
                raise InvalidRequestError(
                    f"{where}: no message before it has a function_call of {message.name[:64]!r}", param=where
                )
            made["tool_call_id"] = last[message.name]


def _content(where: str, content: str | list[ContentPart] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.type != "text" or part.text is None:
            param = f"{where}.content[{index}]"
            raise InvalidRequestError(
                f"{param}: only parts of the form {{type: text, text: ...}} are supported", param=param
            )
    return "\n".join(part.text or "" for part in content)
